"""The words of rendered tables, in English and Chinese. Figures are the same in both."""

from __future__ import annotations

from collections.abc import Mapping

Words = Mapping[str, str]

NORMS: Mapping[str, Words] = {
    "none": {"en": "none", "zh": "不归一化"},
    "batch": {"en": "BN", "zh": "BN"},
    "renorm": {"en": "renorm", "zh": "批重归一化"},
    "ghost": {"en": "ghost BN", "zh": "幽灵批 BN"},
    "moving": {"en": "moving BN", "zh": "移动统计 BN"},
    "range": {"en": "range BN", "zh": "极差 BN"},
    "domain": {"en": "BN by site", "zh": "按中心的 BN"},
    "frozen": {"en": "frozen BN", "zh": "冻结 BN"},
    "group": {"en": "GN", "zh": "GN"},
    "instance": {"en": "IN", "zh": "IN"},
    "layer": {"en": "LN", "zh": "LN"},
}
FAMILY: Mapping[str, tuple[str, str, str]] = {
    "en": ("norm", "{} at batch size {}", "− BN, paired by seed"),
    "zh": ("归一化", "{}（批量大小 {}）", "减去 BN，按种子配对"),
}
# Headers; a cell of a multiple of the floor; a row of a layer, of a step.
SPEED: Mapping[str, tuple[tuple[str, ...], str, str, str]] = {
    "en": (
        ("forward and backward", "mednorm", "PyTorch, same allocator", "PyTorch as installed"),
        "{} floors",
        "BN + ReLU, {}",
        "step of {}",
    ),
    "zh": (
        ("前向与反向", "mednorm", "PyTorch，相同分配器", "PyTorch，默认安装"),
        "{} 倍下限",
        "BN + ReLU，{}",
        "{} 的一步",
    ),
}
FINE_TUNING: Mapping[str, tuple[str, ...]] = {
    "en": ("batch size", "fine-tuned with", "Dice, new scanner", "gained", "Dice, old scanners", "gained"),
    "zh": ("批量大小", "微调方式", "新扫描仪 Dice", "提升", "原扫描仪 Dice", "提升"),
}
ARMS: Mapping[str, Words] = {
    "not fine-tuned": {"en": "not fine-tuned", "zh": "未微调"},
    "moving statistics": {"en": "moving statistics", "zh": "统计量继续移动"},
    "frozen statistics": {"en": "frozen statistics", "zh": "冻结统计量"},
    "frozen statistics, γ and β": {"en": "frozen statistics, γ and β", "zh": "冻结统计量、γ 和 β"},
}
REGULARIZERS: Mapping[str, Words] = {
    "l1": {"en": "L1", "zh": "L1"},
    "l2": {"en": "L2", "zh": "L2"},
    "dropout": {"en": "dropout after each norm", "zh": "各归一化层之后的 dropout"},
    "dropout_before": {"en": "dropout before each norm", "zh": "各归一化层之前的 dropout"},
    "dropout_last": {"en": "dropout after the last norm", "zh": "最后一个归一化层之后的 dropout"},
}
METRICS: Mapping[str, Words] = {
    "auc": {"en": "AUC", "zh": "AUC"},
    "dice": {"en": "Dice", "zh": "Dice"},
    "hd95": {"en": "HD95", "zh": "HD95"},
    "accuracy": {"en": "accuracy", "zh": "准确率"},
    "calibration_error": {"en": "calibration error", "zh": "校准误差"},
}
VERDICTS: Mapping[str, Words] = {
    "better": {"en": "better", "zh": "更好"},
    "worse": {"en": "worse", "zh": "更差"},
    "larger": {"en": "larger", "zh": "更大"},
    "smaller": {"en": "smaller", "zh": "更小"},
    "not distinguishable": {"en": "not distinguishable", "zh": "无法区分"},
}
UNITS: Mapping[str, Words] = {
    "patients": {"en": "patients", "zh": "患者"},
    "images": {"en": "images", "zh": "图像"},
    "": {"en": "patients or images", "zh": "患者或图像"},
}
COUNTED: Mapping[str, Words] = {
    "patients": {"en": "patients", "zh": "名患者"},
    "images": {"en": "images", "zh": "幅图像"},
}
GROUPS: Mapping[str, Words] = {
    "speed": {"en": "(a) faster training", "zh": "(a) 训练更快"},
    "overfitting": {"en": "(b) less overfitting, better generalization", "zh": "(b) 减轻过拟合，改善泛化"},
    "gradients": {"en": "(c) vanishing gradients", "zh": "(c) 梯度消失"},
    "sizes": {"en": "(d) batch size", "zh": "(d) 批量大小"},
    "regularizers": {"en": "(e) L1, L2, dropout", "zh": "(e) L1、L2、dropout"},
}
CLAIMS = {
    "en": ("quantity", "compared", "without", "with", "difference over seeds", "over {}", "verdict"),
    "zh": ("测量的量", "比较", "之前", "之后", "差值（种子间）", "差值（{}间）", "结论"),
}
SIZES = {
    "en": (
        "batch size",
        "BN, running statistics",
        "BN, batch statistics",
        "running − batch",
        "GN",
        "BN − GN over seeds",
        "BN − GN over {}",
        "verdict",
    ),
    "zh": (
        "批量大小",
        "BN，移动统计量",
        "BN，批统计量",
        "移动 − 批",
        "GN",
        "BN − GN（种子间）",
        "BN − GN（{}间）",
        "结论",
    ),
}
SITES = {"en": ("site", "{}, {}", "{} − none", "verdict"), "zh": ("站点", "{}，{}", "{} − 不归一化", "结论")}
EPOCHS = {"en": "epochs to validation {} {}", "zh": "达到验证 {} {} 所需轮数"}
SECONDS = {"en": "seconds to validation {} {}", "zh": "达到验证 {} {} 所需秒数"}
REACHED = {"en": "reached in {} → {} seeds", "zh": "达到目标的种子数 {} → {}"}
TEST = {"en": "test {}", "zh": "测试 {}"}
GAP = {"en": "training − test {}", "zh": "训练 − 测试 {}"}
SHARE = {"en": "{} of the training {}: {}", "zh": "用 {} 的训练{}：{}"}
DECADES = {
    "en": "orders of magnitude from the weakest layer's gradient to the strongest's, {}",
    "zh": "各层梯度范数最弱与最强相差的数量级，{}",
}
WHEN = {"first step": {"en": "first step", "zh": "第一步"}, "first epoch": {"en": "first epoch", "zh": "第一轮"}}
INSIDE = {"en": "{}: {}", "zh": "{}：{}"}
SIZE = {"en": "batch size {}: test {}", "zh": "批量大小 {}：测试 {}"}
MODES = {"en": "BN: batch statistics → running statistics", "zh": "BN：批统计量 → 移动统计量"}


def metric(name: str, language: str) -> str:
    """Name a metric, by default as its key with spaces."""
    return METRICS[name][language] if name in METRICS else name.replace("_", " ")


def regularizer(name: str, language: str) -> str:
    """Name a regularizer, or a sum of several."""
    return " + ".join(REGULARIZERS[part][language] if part in REGULARIZERS else part for part in name.split("+"))
