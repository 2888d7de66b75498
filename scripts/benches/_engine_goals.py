"""What the engine's benchmark is held against: the figures wanted, and how the found ones are shown."""

from __future__ import annotations

from _report import print_table

AT_MOST: dict[str, float] = {
    "b1_bf16_over_floor": 1.30,
    **{f"mm70b_nf4_ratio_{rows}": 0.5 for rows in (1, 2, 4, 8, 16)},
    "mm70b_nf4_ratio_32": 1.0,
    "stall_ratio": 1.5,
    "prefix_hit_ratio": 0.1,
    "host_ms_per_step": 0.3,
    "kv_waste_percent": 4.0,
    "idle_peer_beyond_weights_mb": 900.0,
    "idle_process_rss_mb": 900.0,
}
AT_LEAST: dict[str, float] = {
    "b1_nf4_speedup": 2.2,
    "b16_nf4_speedup": 1.0,
    "b32_nf4_speedup": 1.0,
    "span_tokens_per_s": 12000.0,
    "cpu_fp32_single_speedup": 1.0,
    "cpu_bf16_single_speedup": 1.0,
    "cpu_fp32_8_speedup": 3.0,
    "cpu_bf16_8_speedup": 3.0,
}


def show(figures: dict[str, float]) -> None:
    """All figures as one table, those with a goal marked."""
    print_table(
        ["figure", "here", "wanted", ""],
        [[name, _number(value), *_goal(name, value)] for name, value in figures.items()],
    )


def missed(figures: dict[str, float]) -> list[str]:
    """Names of figures that miss their goal; those that are not finite miss it."""
    return [name for name, value in figures.items() if _goal(name, value)[1] == "missed"]


def _goal(name: str, value: float) -> tuple[str, str]:
    if name in AT_MOST:
        return f"<= {AT_MOST[name]:g}", "ok" if value <= AT_MOST[name] else "missed"
    if name in AT_LEAST:
        return f">= {AT_LEAST[name]:g}", "ok" if value >= AT_LEAST[name] else "missed"
    if name.startswith("nan_"):
        return "0", "ok" if value == 0 else "missed"
    return "", ""


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 0.01 else f"{value:.3f}"
