"""What visitors write to the demo: name, address, subject and text."""

from __future__ import annotations

import typing as t


class Letter(t.NamedTuple):
    """What one visitor types into the form."""

    name: str
    email: str
    subject: str
    text: str


WHALE = """\
Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my \
purse, and nothing particular to interest me on shore, I thought I would sail about a little and \
see the watery part of the world. It is a way I have of driving off the spleen and regulating the \
circulation. Whenever I find myself growing grim about the mouth; whenever it is a damp, drizzly \
November in my soul; whenever I find myself involuntarily pausing before coffin warehouses, and \
bringing up the rear of every funeral I meet; and especially whenever my hypos get such an upper \
hand of me, that it requires a strong moral principle to prevent me from deliberately stepping \
into the street, and methodically knocking people's hats off, then, I account it high time to get \
to sea as soon as I can. This is my substitute for pistol and ball. With a philosophical flourish \
Cato throws himself upon his sword; I quietly take to the ship."""

MAIL = """\
This came back when I tried to mail you instead:

Return-Path: <>
Received: from mx2.example.net (mx2.example.net [192.0.2.25])
\tby mail.example.org (Postfix) with ESMTPS id 4XyZ1k2m3nzB
\tfor <ines@example.org>; Sat, 21 Nov 2026 08:14:09 +0100 (CET)
From: MAILER-DAEMON@mx2.example.net (Mail Delivery System)
To: ines@example.org
Bcc: everyone@example.org
Subject: =?utf-8?q?Undelivered_Mail_Returned_to_Sender?=
Message-ID: <20261121071408.8F3A2@mx2.example.net>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="8F3A2.1763709248/mx2.example.net"

--8F3A2.1763709248/mx2.example.net
Content-Type: text/plain; charset=us-ascii

<contact@example.com>: host mx.example.com[192.0.2.1] said: 550 5.1.1
    User unknown in virtual mailbox table (in reply to RCPT TO command)
.
QUIT
"""

TRACEBACK = """\
Your e-book reader stops on page 12 with this:

Traceback (most recent call last):
  File "reader/page.py", line 118, in render
    return self.template % values
           ~~~~~~~~~~~~~~^~~~~~~~
TypeError: not all arguments converted during string formatting

Version 4.2.0, Debian 13. What works: `reader --plain`. What does not: %s, %(name)s, {0}, ${HOME}.
"""

WRITTEN = [
    ("Ana Sousa", "ana", "A missing comma", "Page 41, line 7: “Lisbon Porto”."),
    ("Bo Nyström", "bo", "Öppettider", "Hej! När har ni öppet på lördagar?"),
    ("Chloé Lefèvre", "chloe", "Où est « Le Horla » ?", "Épuisé… ou à paraître ?"),
    ("David O'Brien", "david", 'It\'s "quoted"', "'single' \"double\" `back`"),
    ("Ελένη Παππά", "eleni", "Ερώτηση", "Πότε θα μεταφραστεί η «Οδύσσεια»;"),
    ("Фёдор Иванов", "fyodor", "Вопрос о доставке", "Доставляете ли вы в Казань?"),
    ("גלית כהן", "galit", "שאלה", "האם יש מהדורה עברית של ISBN 978-3-16-148410-0?"),
    ("حسن علي", "hasan", "سؤال عن كتاب", "هل يوجد الكتاب بالعربية؟ السعر 12٫50 €"),
    ("Inês Duarte", "ines", "Undelivered mail", MAIL),
    ("Jörg Weiß", "joerg", "Maßstäbe für Straßenkarten", "1:25 000, nicht 1:50 000."),
    ("山田花子", "hanako", "注文について", "『吾輩は猫である』を三冊お願いします。"),
    ("김민준", "minjun", "배송 문의", "서울까지 배송이 되나요? 감사합니다."),
    ("李小龙", "xiaolong", "关于译本", "请问《红楼梦》有没有英文全译本？谢谢！"),
    ("Marta Dąbrowska", "marta", "Zażółć gęślą jaźń", "Czy macie „Lalkę” Prusa?"),
    ("Nguyễn Thị Hương", "huong", "Hỏi về sách", "Sách có bản tiếng Việt không ạ?"),
    ("Oğuz Çelik", "oguz", "İade koşulları", "Iğdır'a iade nasıl yapılır? ıİiI"),
    ("प्रिया शर्मा", "priya", "एक प्रश्न", "क्या यह किताब हिन्दी में मिलेगी?"),
    ("สมชาย ใจดี", "somchai", "สอบถาม", "มีหนังสือเล่มนี้ไหมครับ ขอบคุณครับ"),
    ("தமிழ்ச்செல்வி", "tamil", "கேள்வி", "திருக்குறள் கிடைக்குமா?"),
    ("Գոռ Սարգսյան", "gor", "Հարց", "Կա՞ արդյոք հայերեն թարգմանություն։"),
    ("ნინო ბერიძე", "nino", "კითხვა", "როდის გამოვა ახალი გამოცემა?"),
    ("አበበ ቢቂላ", "abebe", "ጥያቄ", "መጽሐፉ በአማርኛ ይገኛል?"),
    ("Wren 🐦", "wren", "📚❤️ 10/10", "👩🏽‍🚀👨‍👩‍👧‍👦🏳️‍🌈🇪🇹 1️⃣ 🫠 thank you!"),
    ("Zalgo", "zalgo", "H̸̡̪̯ͨ͊̽̅̾̎e̵", "c͒ͪo̶̝͖ͅm͎͈̞̹̟̟e̗͔ͫs̴"),
    ("<b>Bold</b>", "bold", "<h1>Markup</h1>", "<script>alert('hi')</script>"),
    ("Xavier", "xss", '"><img src=x onerror=alert(1)>', "javascript:alert(document.cookie)"),
    ("{{ 7 * 7 }}", "jinja", "{% raw %} ${7*7} #{7*7}", "{{ config }} %(x)s {0}"),
    ("Robert'); DROP TABLE", "bobby", "' OR '1'='1' --", "'; DROP TABLE messages; --"),
    ("Back\\slash", "slash", "C:\\new\\table", "\\n is not a line break, \\\\ is two"),
    ("Amp & Sons", "amp", "&lt;Not a tag&gt; &amp;amp;", "A &copy; B & C &#x1F989; D"),
    ("Ishmael", "ishmael", "A long letter", "\n\n".join([WHALE] * 12)),
    ("The Whale", "whale", "One very long paragraph", " ".join([WHALE] * 18)),
    ("Hiroshi", "hiroshi", "いろは" * 20, "色は匂へど散りぬるを我が世誰ぞ常ならむ\n" * 200),
    ("Nospace", "nospace", "W" * 150, "Donaudampfschifffahrtsgesellschaft" * 100),
    ("Emoji " * 13, "many", "🦉" * 150, "🦉🐋🐦" * 2000),
    ("Lines", "lines", "A thousand lines", "\n".join(map(str, range(1, 1001)))),
    ("Tess Coder", "tess", "A crash on page 12", TRACEBACK),
    ("J. Son", "json", '{"a": [1, null]}', '{"__type__": "uuid", "__value__": "x"}'),
    ("Tabitha", "tabs", "A table", "title\tcopies\tprice\nEmma\t3\t9.90\n\tend"),
    ("Markdown", "md", "# Not a heading", "* one\n* two\n\n| a | b |\n|---|---|\n"),
    ("Spacey", "spaces", "Two  spaces", "    indented\n\n\n\nafter a gap"),
    ("Dots", "dots", ".", ".\n.\n..\nQUIT\n."),
    ("Percy Cent", "percent", "100 % sure?", "%41%42%00 %zz + a+b=c&d=e;f"),
    ("Math", "math", "∀ε>0 ∃δ>0", "∫₀^∞ e⁻ˣ² dx = √π⁄2; 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝕸𝖆𝖙𝖍"),
    ("Right to left", "rtl", "(x) [y] <z>", "\u2067عربي\u2069 abc \u202eתשר\u202c def"),
    ("Combining", "nfd", "Café or Café", "Cafe\u0301, Å \u212b A\u030a are not the same bytes"),
    (
        "Zero Width",
        "zero",
        "Joiners: می\u200cخواهم",
        "in\u200bvis\u200dible soft\u00adhyphen\ufeff\u2060 end",
    ),
    ("None", "none", "null", "undefined\nNaN\nTrue\n0\n-0\n1e400"),
    ("Una", "una", "?", "!"),
    ("Plus Address", "plus+tag", "Plus signs", "Does plus+tag@example.org work?"),
    ("Dotted Address", "dotted.name-1_2", "An address", "https://example.org/?q=1&r=2#x"),
    ("Comma, Name", "comma", "Name, with: separators;", "To: a@b.c, d@e.f;"),
    ("Paren (Thesis)", "paren", "(nested (parens))", "<angle@example.org> (x)"),
    ("At @ Sign", "at", "=?utf-8?b?SGk=?=", "=?utf-8?q?=46=4F?= =C3=A4"),
    ("Grüße & Küsse", "gruss", "Danke!", "Ein schönes Buch. Mehr davon, bitte."),
    ("Yusuf Demir", "yusuf", "Signed copies", "Could I have three, for my sons?"),
    ("Vera Novák", "vera", "Žluťoučký kůň", "Příliš žluťoučký kůň úpěl ďábelské ódy."),
    ("Gwen Llywelyn", "gwen", "Cymraeg", "Oes gennych chi lyfrau yn Gymraeg? Ŵŷ"),
    ("Sigríður Þórsdóttir", "sigga", "Íslenska", "Kæmi ný öxi hér, ykist þjófum nú"),
    ("Last One", "last", "That is all", "Nothing more. Kind regards\n\n-- \nL. O."),
]

LETTERS = [
    Letter(name, f"{local}@example.org", subject, text) for name, local, subject, text in WRITTEN
]
