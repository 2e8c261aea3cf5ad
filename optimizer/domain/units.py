"""Units: names carry them, the solver sees integers, and rounding has a direction."""

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

MIB = 1 << 20
GIB = 1 << 30
MIB_PER_GIB = 1024
PPM = 1_000_000
MICROS = 1_000_000


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below ``numerator / denominator``; a need rounds up."""
    return -(-numerator // denominator)


def scaled_up(value: float, scale: int) -> int:
    """``value * scale`` as people wrote it (decimal), rounded up: for needs and demand."""
    return int((Decimal(str(value)) * scale).to_integral_value(ROUND_CEILING))


def scaled_down(value: float, scale: int) -> int:
    """``value * scale`` as people wrote it (decimal), rounded down: for room and capacity."""
    return int((Decimal(str(value)) * scale).to_integral_value(ROUND_FLOOR))


def scaled(value: float, scale: int) -> int:
    """``value * scale`` as people wrote it (decimal), to the nearest: for prices."""
    return int((Decimal(str(value)) * scale).to_integral_value(ROUND_HALF_EVEN))


def money(micros: int) -> float:
    """Millionths of a currency unit as people read them."""
    return round(micros / MICROS, 6)


def gib(mib: int) -> float:
    """MiB as GiB, to three decimals."""
    return round(mib / MIB_PER_GIB, 3)


def rps(mrps: int) -> float:
    """Thousandths of a request per second as requests per second."""
    return mrps / 1000
