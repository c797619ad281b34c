"""How fast a device multiplies matrices, which a model's FLOPs per second are compared with."""

import time

import torch

# Sides of square products that keep a device busy, and how many are timed at once.
_SIZES = {"cuda": (8192, 10), "cpu": (1024, 1)}

# Dense products in bfloat16 with float32 sums, TFLOP/s, of the makers' data sheets. The first name
# that is part of the device's own counts.
_DATASHEET = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "A800": 312,
    "A40": 149.7,
    "L40S": 362,
    "RTX 4090": 165.2,
    "RTX 3090": 71,
}


def datasheet_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """TFLOP/s that the maker gives for this GPU; None where we do not know."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in _DATASHEET.items() if part in name), None)


def matrix_rate(device: torch.device, dtype: torch.dtype, *, repeats: int = 5) -> float:
    """Floating-point operations per second of large square matrix products.

    The fastest of the repeats: what the device can do, not what others left of it.
    """
    # On a CPU the thread's own time: not what other processes take of it.
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    size, count = _SIZES["cuda" if device.type == "cuda" else "cpu"]
    # Neither zeros, which take less power, nor random: no generator moves.
    values = torch.linspace(-1, 1, size, device=device)
    matrix = torch.outer(values, values.flip(0)).to(dtype)
    least = float("inf")
    for repeat in range(-1, repeats):  # the first turn warms up
        start = clock()
        for _ in range(count):
            product = matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= 0:
            least = min(least, clock() - start)
    del product
    return 2 * size**3 * count / least
