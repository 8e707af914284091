"""The train stage: torchrun around Hugging Face's Trainer, on packed rows that are isolated from each other.

What the command line imports (`stage`, `schedule`, `machine`, `launch`, `outcome`) knows no torch; what runs under
torchrun (`worker` and what it imports) does.
"""
