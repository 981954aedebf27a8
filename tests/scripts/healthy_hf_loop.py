"""A tiny GPT-2 of transformers in a loop that is written by hand."""

from pydoc_data import topics

import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, get_linear_schedule_with_warmup

torch.set_num_threads(1)
torch.manual_seed(0)
text = "".join(topics.topics.values())[:60000]
ids = torch.tensor([min(ord(c), 127) for c in text])
examples = [{"input_ids": ids[i : i + 32], "labels": ids[i : i + 32]} for i in range(0, len(ids) - 32, 12)]


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


config = GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
loader = DataLoader(examples, batch_size=16, shuffle=True, drop_last=True, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
scheduler = get_linear_schedule_with_warmup(optimizer, 30, len(loader))

model.train()
for step, batch in enumerate(loader):
    outputs = model(**batch)
    loss = outputs.loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 100 == 0:
        print(step, loss.item())

torch.save(model.state_dict(), "model.pt")
