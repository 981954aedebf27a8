// before the first paint: the reader's choice, else what the system says
(function () {
  var chosen = null;
  try { chosen = localStorage.getItem("whyspike-theme"); } catch (e) { /* a file may not be allowed to remember */ }
  var dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.classList.add("scripted");
})();
