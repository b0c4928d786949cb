"""Attacks: what a stranger may send to the real process, held to what it promises."""
