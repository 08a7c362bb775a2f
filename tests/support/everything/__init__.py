"""A program that holds one of each thing that the kernel keeps for processes, and says which of them are as they were.

It runs in a pod, which has nothing of it but the command that `packed` returns. It prints 1, 2, 3, …, ten times a
second. When the file /data/check is there, it looks at all that it holds, writes what is wrong to /data/report, one
line for each, and removes the file. What a look uses up it makes again, so that it can look as often as is wished.
"""
