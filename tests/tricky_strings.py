"""Texts on which tokenizers are known to disagree: digits, spaces, marks, surrogates, special tokens, odd Unicode."""

from __future__ import annotations

import random
import unicodedata

_WRITTEN = r"""
Hello, world!
What is the capital of France?
I'm you're he's we'll they've I'd can't DON'T I'M WE'LL it's' ''s
 leading and trailing\x20
  two  spaces   three    four    \x20
\ttabs\tand\t\tmore
snake_case camelCase PascalCase kebab-case SCREAMING_SNAKE
0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 1e-10 0x1F 2024-02-29 12:34:56
½ ⅓ ² ³ ¹ ① ⑳ Ⅷ ⅻ ㊿ ௧ ६ ٣ ۳ ໓ 𝟙 𝟘 ๔ ㉈ 〇 一二三
５６７ ａｂｃ ＡＢＣ　full width
naïve café résumé Zoë Ångström œuvre straße ﬁ ﬂ ǆ ŉ
cafe\u0301 e\u0301 n\u0303 A\u030a o\u0308\u0304 \u0301alone
\u1e9b\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126
Ελληνικά κείμενο, ΣΊΣΥΦΟΣ σίσυφος
Привет, как дела? Щёлк
Zażółć gęślą jaźń
Tiếng Việt có dấu
İstanbul ıI iİ
日本語のテキスト、カタカナ、ひらがな。「引用」
中文字符，标点符号。繁體字
한국어 문장입니다 ㅋㅋㅋ ᄒ\u1161\u11ab
العربية من اليمين إلى اليسار ١٢٣
עברית עם נִקּוּד
हिन्दी में क्षत्रिय ज्ञ
বাংলা ভাষা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം
ไทยไม่มีช่องว่าง
አማርኛ ᏣᎳᎩ ქართული հայերեն
😀😃 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 ❤️ ☎︎ 1️⃣ #️⃣
𝒜𝓁𝓅𝒽𝒶 𐍈 𠜎 𪚥 🂡 𝄞
a\u200bb\u200cc\u200dd\u2060e\ufefff
\ufeffstarts with a byte order mark
no\u00a0break\u202fnarrow\u2007figure\u3000ideographic\u2003em\u1680ogham\u2028line\u2029para\u0085nel
\u202eright to left override\u202c
soft\u00adhyphen
zalgo: h\u0321\u0322\u0315e\u0340\u0341l\u0300\u0316l\u0317o\u0318
\u0000nul \u0001 \u0007 \u001b[31m \u007f \u0080 \u009f
\ufffd \ufffe \uffff \U0010ffff \ue000 \U000f0000
¿Qué? ¡Olé! «quote» „unten“ ‚x‘ ‹y› “curly” ‘s it’s don’t
— – ‒ ― … ‥ · • ‣ † ‡ § ¶ © ® ™ ° ′ ″
± × ÷ ≠ ≤ ≥ ≈ ∞ √ ∑ ∫ ∂ ∀ ∃ ∈ ⊂ ∅ → ⇒ ↦ ⟨⟩
€ £ ¥ ₹ ₿ ¢ $ ฿ ₩
!!! ??? ... ,,, ;;; ::: --- ___ *** ### @@@ ~~~ ``` ''' \"\"\"
(){}[]<>/\\|&^%$#@!~`+-=*;:'\",.?
a.b,c;d:e!f?g'h\"i(j)k[l]m{n}o<p>q/r\\s|t&u^v%w$x#y@z
https://example.org/a/b?c=d&e=f#g user+tag@example.co.uk
C:\\Windows\\System32 /usr/local/bin ~/.config
<html lang="en"><body class='x'>&amp;&lt;</body></html>
{"key": [1, 2.5, null, true], "nested": {"a": "b"}}
def f(x: int) -> str:\n    return f"{x!r}"  # comment\n\n\nclass A:\n\tpass\n
for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; }
SELECT * FROM t WHERE a = 'b' AND c <> 1;
| a | b |\n|---|---|\n| 1 | 2 |
# Title\n\n- item\n  - nested\n    1. one\n\n> quote\n\n**bold** _it_ `code`
\\frac{a}{b} $x^2$ \\alpha
line\nline\n\nline\n\n\nline
\r\nwindows\r\nlines\r\n\r\n
\rold mac\rlines
 \n \n  \n\t\n
\n\n\n\n
      indented six
word      gap      word
a  b\u00a0 c \u2003 d
end with spaces   \x20
end with newline\n
end with tab\t
\x0bvertical\x0cform
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
ababababababababababababababababababababab
supercalifragilisticexpialidocious antidisestablishmentarianism
The quick brown fox jumps over the lazy dog. THE QUICK BROWN FOX!
▁ ▁▁ a▁b ▁word Ġ Ġword Ċ ĉ ā
<s> </s> <unk> <pad> <bos> <eos> <mask>
<s>text</s> <s> text </s>
<bos>text<eos> x<eos>y
<|endoftext|> <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nhi<|eot_id|>
<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n
 <|im_end|> <|eot_id|> <end_of_turn> </s> spaced
x<|im_end|>y<|eot_id|>z<end_of_turn>w</s>v
<think>\n\n</think>\n\n <tool_call>{}</tool_call>
<|im_end <|im_end| im_end|> |im_end|> <|IM_END|>
<0x0A> <0xE2> <0x00>
<unused0> <unused99> <2mass> [@BOS@] <h1> <table> <td>
<repo_name>x<file_sep>y <filename>z <issue_start> <reponame>
<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|> <|vision_start|>
[INST] <<SYS>>\nsys\n<</SYS>>\n\nhi [/INST] yes </s><s>[INST] x [/INST]
O'Neill's 'tis rock'n'roll y'all'd've 'S 'T 'RE 'VE 'M 'LL 'D 'ſ x'ſ
'K Kelvin K ſs long ſ
½a 1½ ²x x² a1b2c3 1a 1st 2nd 10th 100km 5° 20% $5.00 €5,00
１２３４５ 123４５ ௧௨௩ ٣٤٥٦ १२३४
ǅ ǈ ᾈ ß ẞ ŉ ΐ
\u0e01\u0e33 \u0eb3 \u0f73
\u0344 \u2126 \u212a \u00c5
\u1100\u1161\u11a8 \uac01 \u1100\u1161
ᾷ \u1fb7 \u03b1\u0342\u0345 \u03b1\u0345\u0342
x\u0338= \u2260 <\u0338
"""
# One text per line, in Python's escapes.


def _generated() -> list[str]:
    """Random mixtures, the same on every run."""
    rng = random.Random(7)
    spaces = [" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\r\n", "\n\n", " \n", ""]
    words = [
        "the",
        "The",
        "don't",
        "42",
        "½",
        "中",
        "é",
        "e\u0301",
        "😀",
        "👍🏽",
        "x_y",
        "...",
        "'s",
        "№5",
        "ﷺ",
        "<|im_end|>",
    ]
    words += ["</s>", "<eos>", "ไทย", "한", "٣", "A1", "🇫🇷", "``", "$", "\u200d", "ſ", "Ⅷ", "²", "\ufffd", "▁", "Ġ"]
    mixtures = ["".join(rng.choice(words) + rng.choice(spaces) for _ in range(rng.randint(2, 12))) for _ in range(80)]
    points = [point for point in range(0x20, 0x30000) if unicodedata.category(chr(point)) not in ("Cs", "Cn")]
    anything = ["".join(chr(rng.choice(points)) for _ in range(rng.randint(1, 12))) for _ in range(40)]
    latin = ["".join(chr(rng.randint(1, 0x24F)) for _ in range(rng.randint(1, 30))) for _ in range(40)]
    return mixtures + anything + latin


def _unescape(line: str) -> str:
    """``line`` with its escapes read; characters beyond Latin-1 are escaped first, as the codec wants."""
    return line.encode("latin-1", "backslashreplace").decode("unicode_escape")


STRINGS = [*(_unescape(line) for line in _WRITTEN.strip("\n").split("\n")), *_generated()]
