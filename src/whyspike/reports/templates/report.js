(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const DASH = { baseline: [], intervention: [8, 4], placebo: [0.1, 5] };
  const WIDTH = { baseline: 3, intervention: 2.25, placebo: 2 };
  const charts = []; // {box, draw, plot}
  let printing = false;

  // ------------------------------------------------------------------ axes

  const short = (x) => {
    if (x == null) return "";
    const size = Math.abs(x);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return x.toExponential(1).replace(".0e", "e").replace("e+", "e");
    return String(+x.toPrecision(3)).replace(/\B(?=(\d{3})+$)/g, size >= 1e4 ? "," : "");
  };
  const whole = (x) => (x == null ? "" : x.toLocaleString("en"));

  // 1, 2 and 5 in every decade; fewer where they would crowd, more where the range is narrow
  function logSplits(u, axis, min, max) {
    const room = Math.max(2, Math.floor(u.bbox.height / devicePixelRatio / 34));
    for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3], [1]]) {
      const made = [];
      for (let k = Math.floor(Math.log10(min)); k <= Math.ceil(Math.log10(max)); k++)
        for (const s of steps) { const v = +(s * 10 ** k).toPrecision(1); if (v >= min && v <= max) made.push(v); }
      if (made.length <= room) return made.length > 1 ? made : evenly(min, max, room);
    }
    const tens = [];
    const every = Math.ceil(Math.log10(max / min) / room);
    for (let k = Math.ceil(Math.log10(min)); 10 ** k <= max; k += every) tens.push(10 ** k);
    return tens;
  }
  function evenly(min, max, room) {
    const raw = (max - min) / Math.max(1, Math.min(room, 5));
    const ten = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((s) => s * ten).find((s) => s >= raw);
    const made = [];
    for (let v = Math.ceil(min / step) * step; v <= max; v += step) made.push(+v.toPrecision(6));
    return made;
  }

  function axes(log, suffix, isSmall) {
    const common = {
      stroke: color("quiet"), font: "12px " + getComputedStyle(document.body).fontFamily,
      grid: { stroke: color("rule"), width: 1 }, ticks: { show: false },
    };
    const y = { ...common, size: isSmall ? 46 : 54, gap: 6, values: (u, list) => list.map((v) => (v == null ? "" : short(v) + suffix)) };
    if (log) { y.splits = logSplits; y.filter = (u, list) => list; }
    return [
      { ...common, gap: 4, size: 30, space: 70, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6, 1e7], values: (u, list) => list.map(whole) },
      y,
    ];
  }

  function yScale(log, fixed) {
    const range = (u, min, max) => {
      if (fixed) return fixed;
      if (min == null || max == null) return log ? [0.1, 1] : [0, 1];
      if (log) { const pad = Math.max((max / min) ** 0.06, 1.05); return [min / pad, max * pad]; }
      const pad = (max - min) * 0.06 || Math.abs(max) * 0.1 || 1;
      return [min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
    };
    return { distr: log ? 3 : 1, log: 10, range };
  }

  function add(id, draw) {
    const box = at(id);
    if (!box) return null;
    const chart = { box, draw, plot: null };
    charts.push(chart);
    return chart;
  }
  function paint(chart) {
    if (chart.plot) chart.plot.destroy();
    const style = getComputedStyle(chart.box);
    // while printing, the layout still has the width of the screen: draw for a sheet of A4 or Letter
    const sheet = chart.box.closest(".pair") ? 305 : 640;
    const room = Math.floor(chart.box.clientWidth);
    chart.plot = chart.draw(chart.box, printing ? Math.min(room, sheet) : room, parseInt(style.minHeight, 10));
    chart.box.dataset.drawn = "yes";
  }
  const cursor = { y: false, points: { show: false }, drag: { x: true, y: false, uni: 8 } };
  const legend = { show: false };

  // ------------------------------------------------------------------ the loss over the steps

  let logAxis = !!(data.loss && data.loss.log);
  let lossChart = null;
  if (data.loss) {
    const given = data.loss;
    const steps = new Array(given.gaps.length);
    for (let k = 0, s = given.first; k < steps.length; k++) steps[k] = s += given.gaps[k];
    const tables = [[steps, given.value]];
    if (given.probe) tables.push([given.probe.step, given.probe.value]);
    const linear = uPlot.join(tables), at_x = linear[0];
    const positive = linear.map((list, k) => (k ? list.map((v) => (v > 0 || v === undefined ? v : null)) : list));
    const marks = (u) => {
      const c = u.ctx, box = u.bbox, tint = color("event");
      c.save();
      c.beginPath(); c.rect(box.left - 6, box.top - 6, box.width + 12, box.height + 7); c.clip();
      const [from, to] = [u.scales.x.min, u.scales.x.max];
      for (const e of given.events) {
        if (e.last < from || e.step > to) continue;
        const left = u.valToPos(e.step, "x", true), right = u.valToPos(e.last, "x", true);
        c.fillStyle = tint;
        c.globalAlpha = 0.09;
        if (right > left) c.fillRect(left - 1, box.top, Math.max(right - left, 2), box.height);
        c.globalAlpha = 1;
        const x = u.valToPos(e.peak[0], "x", true);
        c.strokeStyle = tint;
        c.lineWidth = 1.5 * devicePixelRatio;
        c.beginPath();
        if (e.peak[1] == null || (logAxis && e.peak[1] <= 0)) { // not finite: a cross at the top edge
          const r = 3.5 * devicePixelRatio, y = box.top + r + 2;
          c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x + r, y - r); c.lineTo(x - r, y + r);
        } else c.arc(x, u.valToPos(e.peak[1], "y", true), 4 * devicePixelRatio, 0, 7);
        c.stroke();
      }
      c.restore();
    };
    const readout = (u) => {
      const k = u.cursor.idx, line = at("loss-readout");
      if (k == null || !line) { if (line) line.textContent = line.dataset.rest; return; }
      const step = at_x[k], said = ["step " + whole(step)];
      if (linear[1][k] !== undefined) said.push("logged " + (linear[1][k] == null ? "not finite" : short(linear[1][k])));
      if (linear[2] && linear[2][k] != null) said.push("in the network " + short(linear[2][k]));
      const event = given.events.find((e) => step >= e.step && step <= e.last);
      line.textContent = said.join(", ") + (event ? "; " + event.words : "");
    };
    lossChart = add("loss", (box, width, height) => new uPlot({
      width, height, cursor, legend, padding: [8, 10, 0, 0],
      scales: { x: { time: false }, y: yScale(logAxis) },
      axes: axes(logAxis, "", width < 500),
      series: [
        {}, { stroke: color("curve"), width: 1, points: { show: steps.length < 40, size: 4 } },
        ...(given.probe ? [{ stroke: color("probe"), width: 1.5, points: { show: given.probe.step.length < 40, size: 4 } }] : []),
      ],
      hooks: { draw: [marks], setCursor: [readout] },
    }, logAxis ? positive : linear, box));

    const show = (min, max) => lossChart.plot.setScale("x", { min, max });
    const near = () => {
      const { min, max } = lossChart.plot.scales.x;
      return (min + max) / 2;
    };
    let current = -1;
    const go = (move) => {
      const list = given.events;
      if (!list.length) return;
      const inside = current >= 0 && Math.abs(near() - (list[current].step + list[current].last) / 2) < 2;
      current = inside ? (current + move + list.length) % list.length : move > 0 ? 0 : list.length - 1;
      const e = list[current], around = Math.max(24, 2 * (e.last - e.step)), middle = (e.step + e.last) / 2;
      show(middle - around, middle + around);
      at("loss-readout").textContent = "steps " + whole(e.step) + " to " + whole(e.last) + "; " + e.words;
    };
    const button = (id, act) => { const b = at(id); if (b) b.addEventListener("click", act); };
    button("next", () => go(1));
    button("previous", () => go(-1));
    button("all", () => { current = -1; show(steps[0], steps[steps.length - 1]); });
    const toggle = at("log");
    const press = () => toggle.setAttribute("aria-pressed", String(logAxis));
    press();
    if (!given.value.some((v) => v > 0)) toggle.hidden = true;
    toggle.addEventListener("click", () => {
      const { min, max } = lossChart.plot.scales.x;
      logAxis = !logAxis;
      press();
      paint(lossChart);
      show(min, max);
    });
  }

  // ------------------------------------------------------------------ one epoch, folded

  if (data.fold) {
    const given = data.fold;
    const band = color;
    add("fold", (box, width, height) => new uPlot({
      width, height, cursor, legend, padding: [8, 12, 0, 0],
      scales: { x: { time: false, range: (u, min, max) => [min - (max - min) * 0.01, max + (max - min) * 0.01] }, y: yScale(given.log) },
      axes: axes(given.log, "\u00d7", width < 500),
      series: [{}, { stroke: "transparent", points: { show: false } }, { stroke: "transparent", points: { show: false } },
        { stroke: color("curve"), width: 1.75, points: { show: given.position.length <= 80, size: 4, fill: color("curve") } }],
      bands: [{ series: [1, 2], fill: mix(band("curve"), 0.16) }],
      hooks: { drawAxes: [(u) => {
        const c = u.ctx;
        c.save();
        c.strokeStyle = color("event"); c.lineWidth = devicePixelRatio;
        for (const [place] of given.places) {
          const x = Math.round(u.valToPos(place, "x", true));
          c.beginPath(); c.moveTo(x, u.bbox.top); c.lineTo(x, u.bbox.top + u.bbox.height); c.stroke();
        }
        c.restore();
      }] },
    }, [given.position, given.high, given.low, given.median], box));
  }
  function mix(hex, alpha) {
    const n = parseInt(hex.length === 4 ? hex.slice(1).replace(/./g, "$&$&") : hex.slice(1), 16);
    return "rgba(" + (n >> 16) + "," + ((n >> 8) & 255) + "," + (n & 255) + "," + alpha + ")";
  }

  // ------------------------------------------------------------------ the arms

  if (data.arms) {
    const given = data.arms;
    const x = [];
    for (let k = given.first; k <= given.last; k++) x.push(k);
    const changes = given.arms.filter((a) => a.arm === "intervention");
    let chosen = changes[0];
    const shown = () => given.arms.filter((a) => a.arm !== "intervention" || a === chosen);
    const bounds = (() => { // one scale for both pictures, so that the two heights can be compared
      let low = Infinity, high = -Infinity;
      for (const a of given.arms) for (const key of ["reported", "state"])
        for (const list of [a[key].median, ...a[key].pairs]) for (const v of list)
          if (v != null) { low = Math.min(low, v); high = Math.max(high, v); }
      return [low, high];
    })();
    const log = bounds[0] > 0 && bounds[1] > 5 * bounds[0];
    const pad = log ? (bounds[1] / bounds[0]) ** 0.06 : (bounds[1] - bounds[0]) * 0.06 || 1;
    const range = log ? [bounds[0] / pad, bounds[1] * pad] : [bounds[0] - pad, bounds[1] + pad];
    const draw = (key) => (box, width, height) => {
      const series = [{}], columns = [x];
      for (const a of shown()) for (const pair of a[key].pairs) {
        series.push({ stroke: mix(color(a.arm), a.arm === "placebo" ? 0.1 : 0.25), width: 1, points: { show: false } });
        columns.push(pair);
      }
      for (const a of shown()) {
        series.push({ stroke: color(a.arm), width: WIDTH[a.arm], dash: DASH[a.arm], cap: a.arm === "placebo" ? "round" : "butt", points: { show: false } });
        columns.push(a[key].median);
      }
      return new uPlot({
        width, height, cursor: { show: false }, legend, padding: [8, 8, 0, 0],
        scales: { x: { time: false }, y: yScale(log, range) },
        axes: axes(log, "\u00d7", true),
        series,
        hooks: { drawAxes: [(u) => { // the event, and the level before it
          const c = u.ctx, at0 = u.valToPos(0, "x", true), at1 = u.valToPos(1, "y", true);
          c.save();
          c.strokeStyle = color("quiet"); c.lineWidth = devicePixelRatio; c.globalAlpha = 0.55;
          c.beginPath(); c.moveTo(at0, u.bbox.top); c.lineTo(at0, u.bbox.top + u.bbox.height);
          c.moveTo(u.bbox.left, at1); c.lineTo(u.bbox.left + u.bbox.width, at1); c.stroke();
          c.restore();
        }] },
      }, columns, box);
    };
    const both = [add("reported", draw("reported")), add("state", draw("state"))];
    if (changes.length > 1) {
      const list = at("changed");
      at("choice").hidden = false;
      changes.forEach((a, k) => list.add(new Option(a.words, k)));
      list.addEventListener("change", () => { chosen = changes[+list.value]; both.forEach(paint); });
    }
  }

  // ------------------------------------------------------------------ drawn, and drawn again

  const all = () => charts.forEach(paint);
  all();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; all(); } });
  const set = (theme) => { document.documentElement.dataset.theme = theme; all(); };
  at("theme").addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("whyspike-theme", next); } catch (e) { /* not remembered */ }
    set(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (e) => set(e.matches ? "dark" : "light"));
  let before = null;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; printing = true; set("light"); });
  addEventListener("afterprint", () => { printing = false; if (before) set(before); });
})();
