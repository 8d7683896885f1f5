"""The Chinese troubleshooting dialogues of the chat set: short, tokens are costly."""

from __future__ import annotations

from typing import Any

from course_utils.sets.dice import Dice

DEVICES = ("打印机", "路由器", "显示器", "耳机", "键盘", "音箱", "相机", "扫描仪", "投影仪", "平板")
FAULTS = ("开不了机", "没有声音", "连不上网", "总是死机", "屏幕发黑", "充不了电", "按键失灵")
QUESTIONS = ("错误码是多少？", "屏幕上显示什么代码？", "请告诉我错误码。")
REQUESTS = ("请帮我报修。", "那就报修吧。", "可以派人来修吗？", "请登记一下。")


def make(dice: Dice) -> tuple[list[str], dict[str, Any]]:
    """Turns of a dialogue (user first), and the check of its last answer."""
    device, code = dice.pick(DEVICES), f"{dice.pick('ABEFH')}{dice.number(10, 99)}"
    turns = [
        f"我的{device}{dice.pick(FAULTS)}。",
        dice.pick(QUESTIONS),
        dice.pick(("{}", "显示{}。", "是{}。")).format(code),
        "请先重启试试。",
        f"还是不行，{dice.pick(REQUESTS)}",
        f"已登记：{device}，错误码{code}。",
    ]
    if dice.chance(0.4):  # three turns of the user become two
        turns[0] = f"{turns[0][:-1]}，显示{code}。"
        del turns[1:3]
    return turns, {"type": "contains", "values": [device, code]}
