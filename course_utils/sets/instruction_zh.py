"""The Chinese kinds of the instruction set: short, since a character costs two to three tokens."""

from __future__ import annotations

import json

from course_utils.sets.dice import Dice
from course_utils.sets.kinds import Example, Kind, choice, exact

ELECTRIC = (
    "耳机", "键盘", "台灯", "风扇", "手表", "音箱", "相机", "电饭锅", "充电器", "打印机",
    "显示器", "吹风机",
)  # fmt: skip
GOODS = ELECTRIC + (
    "水杯", "背包", "雨伞", "书桌", "椅子", "鞋子", "外套", "毛巾", "窗帘", "行李箱",
    "被子", "帽子",
)  # fmt: skip
SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡林"
GIVEN = (
    "芳",
    "伟",
    "敏",
    "静",
    "丽",
    "强",
    "磊",
    "洋",
    "艳",
    "勇",
    "娜",
    "杰",
    "涛",
    "明",
    "超",
    "兰",
)
CITIES = (
    "北京",
    "上海",
    "广州",
    "深圳",
    "杭州",
    "成都",
    "武汉",
    "西安",
    "南京",
    "重庆",
    "苏州",
    "天津",
)
GOOD = (
    "很好用", "质量不错", "发货很快", "做工很好", "我很喜欢", "颜色漂亮", "价格实惠", "客服热情",
    "值得购买", "用着放心", "非常满意", "包装精美",
)  # fmt: skip
BAD = (
    "很难用", "质量太差", "发货太慢", "做工粗糙", "我很失望", "颜色不对", "价格太贵", "客服冷淡",
    "不值得买", "两天就坏", "非常后悔", "包装破了",
)  # fmt: skip
INTENTS: dict[str, tuple[str, ...]] = {
    "退款": (
        "{g}我不要了，请退钱。",
        "买{g}的钱什么时候退？",
        "{g}已寄回，请退{n}元。",
        "请把{g}的{n}元还我。",
    ),
    "物流": ("我的{g}到哪里了？", "{g}什么时候送到{c}？", "{g}发货了吗？", "去{c}的{g}走到哪了？"),
    "发票": (
        "请给{g}开票。",
        "{g}的票据寄到{c}。",
        "买{g}要报销，需要票。",
        "{n}元的{g}能开票吗？",
    ),
    "维修": (
        "{e}坏了，能修吗？",
        "{e}没反应了，怎么办？",
        "{c}哪里可以修{e}？",
        "修{e}要{n}元吗？",
    ),
}


def name(dice: Dice) -> str:
    """A Chinese name of two or three characters."""
    return dice.pick(SURNAMES) + "".join(dice.sample(GIVEN, dice.number(1, 2)))


def make_sentiment(dice: Dice) -> Example:
    good = dice.chance(0.5)
    parts = dice.sample(GOOD if good else BAD, dice.number(1, 2))
    label = "正面" if good else "负面"
    return f"{dice.pick(GOODS)}{'，'.join(parts)}。", label, choice(label)


def make_intent(dice: Dice) -> Example:
    label = dice.pick(tuple(INTENTS))
    text = dice.pick(INTENTS[label]).format(
        g=dice.pick(GOODS),
        e=dice.pick(ELECTRIC),
        c=dice.pick(CITIES),
        n=dice.number(20, 300),
    )
    return text, label, choice(label)


def make_date(dice: Dice) -> Example:
    year, month, day = dice.number(1995, 2031), dice.number(1, 12), dice.number(1, 28)
    form = dice.pick(("{y}-{m:02d}-{d:02d}", "{y}/{m}/{d}", "{y}.{m:02d}.{d:02d}"))
    answer = f"{year}年{month}月{day}日"
    return form.format(y=year, m=month, d=day), answer, exact(answer)


def make_fields(dice: Dice) -> Example:
    value = {"姓名": name(dice), "城市": dice.pick(CITIES), "商品": dice.pick(GOODS)}
    text = dice.pick(
        (
            "{姓名}在{城市}买了{商品}。",
            "请把{商品}寄给{城市}的{姓名}。",
            "{城市}的{姓名}想要{商品}。",
            "{商品}一件，{姓名}收，{城市}。",
        )
    ).format(**value)
    return text, json.dumps(value, ensure_ascii=False), {"type": "json", "value": value}


def make_time(dice: Dice) -> Example:
    hour = dice.pick((7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21))  # 12:05 is disputed
    minute = dice.pick((0, 5, 10, 15, 20, 25, 30, 40, 45, 50))
    part = "上午" if hour < 12 else "下午" if hour < 18 else "晚上"
    answer = f"{part}{(hour - 1) % 12 + 1}点" + (f"{minute}分" if minute else "")
    return f"{hour:02d}:{minute:02d}", answer, exact(answer)


def make_price(dice: Dice) -> Example:
    goods, price = dice.pick(GOODS), dice.number(10, 990)
    answer = f"{goods}：{price}元"
    form = dice.pick(("{g}卖{p}块钱", "一件{g}{p}块", "{p}块买到{g}", "花{p}块钱买{g}"))
    return form.format(g=goods, p=price), answer, exact(answer)


KINDS = (
    Kind(
        "zh_sentiment",
        62,
        (
            "评价是正面还是负面？",
            "判断情感：正面或负面。",
            "只回答正面或负面。",
            "这条评论属于正面还是负面？",
        ),
        make_sentiment,
        "zh",
    ),
    Kind(
        "zh_intent",
        62,
        (
            "意图是退款、物流、发票还是维修？",
            "选一个标签：退款、物流、发票、维修。",
            "客户要什么？退款、物流、发票或维修。",
            "分类：退款/物流/发票/维修。",
        ),
        make_intent,
        "zh",
    ),
    Kind(
        "zh_date",
        62,
        ("写成年月日。", "把日期改成中文格式。", "用“年月日”写这个日期。", "日期转为中文写法。"),
        make_date,
        "zh",
    ),
    Kind(
        "zh_fields",
        62,
        (
            "提取姓名、城市、商品，用JSON。",
            "用JSON写出姓名、城市和商品。",
            "输出JSON：姓名、城市、商品。",
            "把姓名、城市、商品整理成JSON。",
        ),
        make_fields,
        "zh",
    ),
    Kind(
        "zh_time",
        62,
        (
            "用上午、下午、晚上说时间。",
            "改成十二小时制。",
            "口语怎么说这个时间？",
            "把时间写成几点几分。",
        ),
        make_time,
        "zh",
    ),
    Kind(
        "zh_price",
        62,
        (
            "写成“商品：价格元”。",
            "改成“商品：多少元”的格式。",
            "整理价格，格式是商品：元。",
            "按“商品：元”写。",
        ),
        make_price,
        "zh",
    ),
)
