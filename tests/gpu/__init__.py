"""What CUDA does on a real GPU: parts that travel, and one run that leaves report.json.

`make gpu-parts` makes build/gpu/part-NN here. On the machine with the GPU, collect.sh puts them
together and run.sh measures; `tests.gpu.steps` has what is measured, in its order.
"""
