"""Print the Chebyshev coefficients in backends/numpy.py: log(erfc(y) exp(y^2) / t) over t = 2 / (2 + y), y >= 0. Needs mpmath."""

import mpmath as mp

TERMS, NODES = 30, 80


def target(u: mp.mpf) -> mp.mpf:  # u in (-1, 1), t = (u + 1) / 2
    t = (u + 1) / 2
    y = 2 / t - 2
    if y < 300:
        scaled = mp.erfc(y) * mp.exp(y * y)
    else:  # the asymptotic series, DLMF 7.12.1
        terms = [(-1) ** k * mp.fac2(2 * k - 1) / (2 * y * y) ** k for k in range(10)]
        scaled = mp.fsum(terms) / (y * mp.sqrt(mp.pi))
    return mp.log(scaled / t)


if __name__ == "__main__":
    mp.mp.dps = 50
    angles = [mp.pi * (k + mp.mpf(1) / 2) / NODES for k in range(NODES)]
    values = [target(mp.cos(angle)) for angle in angles]
    for j in range(TERMS):
        coefficient = mp.fsum(value * mp.cos(j * angle) for value, angle in zip(values, angles, strict=True)) * 2 / NODES
        print(f"    {float(coefficient / (2 if j == 0 else 1))!r},")
