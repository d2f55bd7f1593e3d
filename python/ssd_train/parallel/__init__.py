"""One model trained by several processes, started by torchrun: the processes, and how neurons are shared among them.

group.py: the processes and what they tell each other, on torch.distributed, which is imported only there and only with
`--parallel`. shards.py: which part of a model each has. pieces.py: files of tensors that no process holds whole.
"""
