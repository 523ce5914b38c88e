"""Expressions of the language itself, for snippet_cases.py."""

LANGUAGE = r"""
1 + 2 * 3
(1 + 2) * 3
7 / 2
7 // 2
-7 // 2
7 // -2
-7 % 3
7 % -3
7.5 % 2
-7.5 // 2
2 ** 10
2 ** -1
2 ** 3 ** 2
-2 ** 2
2 ** 0.5
4 / 2
1 / 3
1 / 0
1 // 0
1 % 0
1.0 // 0
1e3
1.5e-7
1e16
123456789012345678.0
0.0001
0.00001
1e22
1E5
1_000
0x1F
0b101
0o17
0XaB
9223372036854775807
1.0
-0.0
100.0 * 1.1
0.1 + 0.2
true
True
false
False
none
None
true + true
true * 3
not true
not none
not 0
1 and 2
0 and 2
0 or 'x'
'' or none or []
1 and 'a' or 'b'
not 1 == 2
1 < 2 < 3
1 < 3 < 2
1 == 1.0
1 == true
'a' < 'b'
'a' == 'a'
'Z' < 'a'
'é' > 'z'
[1, 2] < [1, 3]
[1, 2] == [1, 2]
[1, 2] == (1, 2)
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
1 < 'a'
none < 1
1 != 2
1 >= 1
1 <= 0
'a' in 'abc'
'x' not in 'abc'
'' in 'abc'
1 in [1, 2]
1.0 in [1, 2]
'a' in {'a': 1}
'b' in d
'zz' in d
1 in 'abc'
none in [none]
1 in none
'x' in nothing
nothing in 'x'
nothing in [1]
3 in range(5)
'a' ~ 1 ~ none ~ true ~ 1.5
'a' ~ nothing ~ 'b'
'a' + 'b'
'a' + 1
1 + 'a'
'a' * 3
3 * 'ab'
'a' * -1
[1] * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
'a' - 'b'
none + 1
nothing + 1
1 + nothing
-nothing
+5
-f
+f
--5
- -5
-'a'
'x' if true else 'y'
'x' if false else 'y'
'x' if false
('x' if false) is defined
'x' if nothing else 'z'
1 if 2 if 0 else 3 else 4
'a' 'b' "c"
'tab\there'
'nl\nx'
'\x41\u00e9\U0001F600\101\0'|length
'quote\'s "d"'
"quote's \"d\""
'back\\slash'
'\q\/'
'日本'
[]
()
(1,)
(1, 2)
1, 2
{}
[1, 'a', none, true, 1.5, [2], (3,), {'k': 'v'}]
{'a': 1, 2: 'b', none: 3, 1.5: 4, true: 5}
{'a': 1, 'a': 2}
{[1]: 2}
{(1, 2): 3}
["it's", 'say "x"', 'both \' "', 'a\nb\t', 'é', '\x01\x7f']
[q]
q
u
d
rows
l[0]
l[-1]
l[5]
l[-9]
l[0:2]
l[1:]
l[:-1]
l[::-1]
l[::2]
l[5:1:-2]
l[::0]
l['x']
l[none]
l[1.0]
l[true]
l.0
l.1
s[0]
s[-1]
s[99]
s[1:4]
s[::-1]
s[::3]
s[-3:]
s[:-3]
s[10:2]
s[4:-1:2]
u[0:3]
u[-2:]
u[::-1]
u[4]
(1, 2, 3)[1:]
range(10)[2:5]
range(10)[3]
d['a']
d.a
d.C.x
d['C']['x']
d['missing']
d.missing
d.missing.more
d['missing']['more']
d.missing is defined
d.C.y is defined
d[0]
d[none]
d[l]
none.x
none['x']
none.x.y
n.x
s.x
s.x.y
l.x
nothing
nothing.x
nothing[0]
nothing()
nothing|length
nothing|list
nothing == nothing
nothing == none
nothing is undefined
nothing|default('d')
nothing|d
none|default('d')
none|default('d', true)
''|default('d', boolean=true)
s|default('d')
s.__class__
s.__class__.__mro__
s['__class__']
d.__init__
l.append(1)
l.append
d.update({'z': 1})
d.pop('a')
l.sort()
d.clear
d|attr('a')
(d|attr('get'))('b')
1()
'a'()
""".strip().split("\n")

# Functions, and what meets in one expression.
MIXED = r"""
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y')
strftime_now('%B %d, %Y %H:%M:%S')
strftime_now('%A %j %I %p %y')
strftime_now('%f|%z|%Z|%%')
strftime_now('')
strftime_now('日 %d')
strftime_now(1)
dict(a=1, b='x')
dict({'a': 1}, b=2)
dict([('a', 1)])
dict(1)
namespace(a=1).a
namespace(a=1).b
namespace({'a': 2}).a
namespace(a=1)
namespace(_a=1)
raise_exception('boom')
raise_exception('boom ' ~ n)
raise_exception()
[x for x in l]
s|
s.
{{
}}
1 +
(1
[1
{'a'
'abc
foo bar
l[1
n n
1 not 2
s|upper()|lower
s|upper|lower|title
(s|upper).lower()
s|upper.lower
'a'|upper ~ 'b'
-1|abs
-n|abs
2 * 3|string
n|string ~ 'x'
'a' + 'b'|upper
not n is none
n > 41 and n < 43
n in l or n == 42
l|length > 2
l|length - 1
(l|length) % 2
'a' == 'a' and 'b' != 'c'
{'a': {'b': {'c': 1}}}['a']['b'].c
{'a': {}}
[[1, 2], [3]][0][1]
rows[0].name[0]
rows[-1]['name'].lower()[::-1]
rows|map(attribute='name')|join(', ')|upper
(rows|first).age + 1
d.C.x is none
d['a'][1:]|first
*l
range(*[1, 4])|list
dict(**{'a': 1})
dict(*[{'a': 1}], **{'b': 2})
'{}{}'.format(*l)
'{}{}'.format(1, *[2])
'{a}'.format(**{'a': 3})
s.split(' ')[0] | lower
"a" if n == 42 else "b" ~ "c"
("a" if n == 42 else "b") ~ "c"
1if 1else 2
true and not false
not not true
[]|length == 0
none == false
'1' == 1
loop
varargs
caller
9223372036854775807 + 0
-9223372036854775807
1000000007 * 998244353
""|length
'a\
b'
u|title
u.capitalize()
'ǆ'.upper()
'İ'.lower()|length
'É'.lower()
'éa'.isalpha()
'٣'.isdigit()
'²'.isdigit()
[1,2,]
(1,2,)
{'a': 1,}
dict(a=1,)
l[0,]
l[1:2, 0]
n.5
'%s' % (u,)
'%5s|' % 'é'
['é', 'a']|sort
['B', 'a']|sort|join
[true, false, 0, 2]|sort
[1.5, 1]|max
[[2, 'b'], [1, 'a']]|sort
cycler('a', 'b').next()
joiner(',')()
s|attr('nonesuch') is defined
nothing is defined and nothing.x
(nothing or d).b
s.join(['1', '2'])
s * 0
s|length * '='
'=' * (s|length)
f ~ ''
(10 / 5) ~ ''
(10 / 5)|int
10 // 5.0
1e100
1e-100
123456.789e3
5e-324
1.7976931348623157e308
1e308 * 10
-1e308 * 10
0.1 + 0.7
1/3*3
[0.1, 1e16, 1e15]
100000000000000000000.0
12345678901234567.0
n == 42.0
d == {'b': 1, 'a': [1, 2], 'C': {'x': none}}
tag
tag ~ tag|upper
"%s|%s" % (tag, 1)
""".strip().split("\n")
