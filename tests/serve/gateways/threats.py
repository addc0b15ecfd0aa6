"""300 different blatant threats and 60 ordinary messages, for bursts."""

from itertools import product

_OPENINGS = ("姓李的", "张老板", "最后一次通知你", "别装死", "你躲不掉的", "听好了")
_DEMANDS = ("今晚不还钱", "再不把欠款还清", "中午之前不转五千过来", "三天内不还贷款", "不给两百块")
_THREATS = (
    "就爆你通讯录，让你所有亲友都知道", "就打爆你电话，白天黑夜不停", "我们上门找你家人，后果自负",
    "让你全村都知道你欠钱不还",
    "就把你的照片发给你单位每个人", "叫人去你孩子学校门口等着", "呼死你的手机，打到你关机", "弄死你全家，一个都跑不掉",
    "群发你的裸照给所有联系人", "派人到你公司闹，让你没脸上班",
)  # fmt: skip
THREATS = [f"{opening}，{demand}，{threat}" for opening, demand, threat in product(_OPENINGS, _DEMANDS, _THREATS)]
_PLANS = ("晚上一起吃饭吧", "明天几点到车站", "记得带伞，下午有雨", "周末去看电影好吗", "孩子的作业写完了", "生日快乐")
ORDINARY = [f"{who}，{plan}" for who, plan in product(
    ("妈", "小王", "老师好", "爸", "老婆", "李姐", "哥", "阿姨", "同学们", "亲爱的"), _PLANS
)]  # fmt: skip
