"""Expressions and small templates for make_template_goldens.py."""

# Printed as {{ ... }}.
EXPRESSIONS = r"""
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
s.upper()
s.lower()
s.title()
s.capitalize()
s.swapcase()
u.upper()
u.lower()
u.title()
'straße'.upper()
'ΟΔΟΣ'.lower()
"they're bill's friends".title()
"they're bill's-friends (now)"|title
'hELLO wORLD'|title
'hELLO wORLD'|capitalize
' a b '.strip()
' a b '.lstrip()
' a b '.rstrip()
'xxaxbxx'.strip('x')
'abcba'.strip('ab')
'abcba'.lstrip('ab')
'abcba'.rstrip('ab')
'\u2003é\xa0'.strip()
'日本日'.strip('日')
'a,b,,c'.split(',')
'a,b,,c'.split(',', 1)
'a,b,,c'.split(',', maxsplit=2)
'a,b,,c'.split(sep=',')
'a,b,,c'.rsplit(',', 1)
'a,b,,c'.rsplit(',')
' a  b c '.split()
' a  b c '.split(none, 1)
' a  b c '.rsplit(none, 1)
' a  b c '.rsplit()
' a  b c '.split(maxsplit=0)
''.split()
''.split(',')
'abc'.split('')
'a<think>b</think>c'.split('</think>')[-1]
'aXbXc'.partition('X')
'aXbXc'.rpartition('X')
'abc'.partition('X')
lines.splitlines()
lines.splitlines(true)
lines.split('\n')
s.startswith('Hello')
s.startswith(('x', 'Hell'))
s.startswith('World', 6)
s.endswith('World')
s.endswith(('a', 'ld'))
s.endswith('')
s.startswith(1)
s.startswith(['H'])
s.replace('l', 'L')
s.replace('l', 'L', 2)
s.replace('', '-')
s.replace('zz', '')
s.replace('o', '')
'日本'.replace('', '-')
s.find('o')
s.find('o', 5)
s.find('zz')
s.find('o', -5)
s.find('o', 0, 3)
s.rfind('o')
u.find('жук')
s.index('W')
s.index('zz')
s.rindex('o')
s.count('l')
s.count('')
'aaaa'.count('aa')
s.count('o', 5)
'-'.join(w)
'-'.join(['a'])
'-'.join([])
'-'.join([1])
', '.join(d)
'{} {}'.format(1, 'a')
'{0}{1}{0}'.format('x', 'y')
'{a}-{b}'.format(a=1, b=none)
'{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c')
'{:*^7}'.format('ab')
'{:05d}'.format(42)
'{:+d}'.format(42)
'{:,}'.format(1234567)
'{:.2f}'.format(3.14159)
'{:8.3f}|'.format(2.5)
'{:x} {:X} {:#x} {:b} {:o}'.format(255, 255, 255, 5, 8)
'{:e}'.format(12345.678)
'{:g}'.format(0.00001234)
'{:.1%}'.format(0.256)
'{!r}'.format('a')
'{!s:>4}'.format('a')
'{{}}'.format()
'{0[a]}'.format({'a': 5})
'{0.a}'.format({'a': 5})
'{:{}}|'.format('a', 4)
'{}'.format()
'{'.format(1)
'{x}'.format(1)
'{0.__class__}'.format('a')
'{:.3}'.format('abcdef')
'{:5}|'.format(3)
'{:5}|'.format('a')
'{:d}'.format('a')
'%s and %s' % ('a', 1)
'%d%%' % 50
'%5.2f|' % 3.14159
'%-5s|%5s|' % ('a', 'b')
'%05d' % 42
'%+d % d' % (1, 2)
'%x %X %o' % (255, 255, 8)
'%r' % 'a'
'%(a)s-%(b)d' % {'a': 1, 'b': 2}
'%s' % none
'%s' % [1, 2]
'%s %s' % 'a'
'%s' % ('a', 'b')
'%d' % 'a'
'%d' % 3.9
'%s'
'%e' % 12345.678
'%g' % 1e10
'%c' % 'x'
'%s %s'|format('a', 'b')
'%(x)s'|format(x=1)
'%.3s'|format('abcdef')
'abc'.isdigit()
'123'.isdigit()
''.isdigit()
'12a'.isdigit()
'abc'.isalpha()
'abé'.isalpha()
'ab1'.isalnum()
' \t'.isspace()
''.isspace()
'ABC'.isupper()
'AbC'.isupper()
'abc'.islower()
'123'.isupper()
'abc'.isascii()
'é'.isascii()
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'x.txt'.removesuffix('.doc')
'x'.removesuffix('')
'a'.ljust(3) ~ '|'
'a'.rjust(3, '.')
'a'.center(4, '.')
'ab'.center(5, '.')
'42'.zfill(5)
'-42'.zfill(5)
s.nonexistent()
d.get('b')
d.get('zz')
d.get('zz', 7)
d.keys()
d.values()
d.items()
d.keys()|list
d.values()|list
d.items()|list
d|list
d|length
d|items|list
nothing|items|list
l.index(1)
l.index(99)
l.count(1)
(1, 2, 1).count(1)
l|length
s|length
u|length
n|length
none|length
l|count
l|first
l|last
empty|first
empty|last
empty|first is defined
s|first
s|last
d|first
l|reverse|list
s|reverse
u|reverse
l|reverse|first
n|reverse
l|sort
l|sort(reverse=true)
w|sort
w|sort(case_sensitive=true)
w|sort(true)
rows|sort(attribute='name')|map(attribute='name')|list
rows|sort(attribute='age,name')|map(attribute='name')|list
rows|sort(attribute='age', reverse=true)|map(attribute='name')|list
[1, 'a']|sort
d|sort
d|dictsort
d|dictsort(true)
{'a': 2, 'b': 1}|dictsort(by='value')
{'a': 2, 'b': 1}|dictsort(false, 'value', true)
d|dictsort(by='x')
l|min
l|max
w|min
w|max
w|max(case_sensitive=true)
rows|max(attribute='age')
rows|min(attribute='age')
empty|max
[1, 'a']|max
l|sum
[]|sum
[1.5, 2]|sum
rows|sum(attribute='age')
rows|sum('age', 100)
['a', 'b']|sum
w|join
w|join(', ')
[1, none, 2.5]|join('-')
rows|join(', ', attribute='name')
rows|join(attribute='age')
s|join('.')
nothing|join
none|join
d|join('+')
w|map('upper')|list
rows|map(attribute='name')|list
rows|map(attribute='tags.0')|list
rows|map(attribute='tags', default='none')|list
rows|map(attribute='missing', default=0)|list
l|map('string')|list
l|map('default', 1)|list
l|map('nonesuch')|list
l|map|list
rows|selectattr('tags')|map(attribute='name')|list
rows|selectattr('tags', 'defined')|list|length
rows|selectattr('age', 'equalto', 31)|map(attribute='name')|list
rows|selectattr('age', 'gt', 30)|list|length
rows|selectattr('age', '>=', 31)|list|length
rows|rejectattr('age', 'eq', 31)|map(attribute='name')|list
rows|selectattr('name', 'in', ['Bob', 'Zoe'])|list|length
l|select('odd')|list
l|select|list
l|reject('odd')|list
[0, 1, '', 'a', none]|select|list
[0, 1, '', 'a', none]|reject|list
l|select('nonesuch')|list
l|select('divisibleby', 2)|list
l|select('odd')|length
(l|select('odd'))[0]
l|select('odd') is sequence
l|select('odd') is iterable
l|list
s|list
(1, 2)|list
n|list
[1, 1, 2, 'a', 'A']|unique|list
[1, 1, 2, 'a', 'A']|unique(true)|list
rows|unique(attribute='age')|map(attribute='name')|list
rows|groupby('age')|list
rows|groupby('name')|map('first')|list
rows|groupby('age')|map('last')|map('length')|list
rows|groupby('missing', default='m')|map('first')|list
range(10)|batch(3)|list
range(10)|batch(3, 'x')|list
range(10)|slice(3)|list
range(10)|slice(3, 'x')|list
range(3)
range(1, 4)
range(3)|list
range(1, 10, 3)|list
range(10, 0, -3)|list
range(0)|list
range(1000000)
range(1, 2, 0)
range('a')
range()
n|string
none|string
l|string
f|int
'42'|int
'42.9'|int
' 42 '|int
'x'|int
'x'|int(7)
'x'|int(default=-1)
'ff'|int(0, 16)
'0xff'|int(base=16)
'0b11'|int(0, 2)
'1_000'|int
none|int
true|int
'1e3'|int
l|int
'3.5'|float
'abc'|float
'abc'|float(1.5)
'inf'|float
n|float
none|float
'1e5'|float
neg|abs
-f|abs
's'|abs
f|round
f|round(1)
3.14159|round(2)
2.5|round
3.5|round
-2.5|round
42|round
42.55|round(1, 'floor')
42.55|round(1, 'ceil')
42.4|round(method='ceil')
1234|round(-2)
1.005|round(2)
f|round(1, 'bad')
f|round|int
s|upper
s|lower
u|upper
u|lower
n|upper
'  x '|trim
'xxaxx'|trim('x')
n|trim
s|replace('l', 'L')
s|replace('l', 'L', 1)
s|replace('Hello', n)
'aaa'|replace('a', 'b', 2)
lines|indent
lines|indent(2)
lines|indent(2, true)
lines|indent(2, blank=true)
lines|indent('> ')
lines|indent(width='>>', first=true, blank=true)
'a\nb'|indent
'one two three four'|truncate(10)
'one two three four'|truncate(10, true)
'one two three four'|truncate(10, true, '…')
'one two three four'|truncate(10, leeway=0)
'one two three four'|truncate(18)
'one two three four'|truncate(2)
'abc'|center(9)
'abcd'|center(9)
s|wordcount
"it's a b-c 12"|wordcount
html|e
html|escape
html|safe
n|e
s|urlencode
html|urlencode
{'a b': 'c/d', 'x': 1}|urlencode
'é /?'|urlencode
s|first|upper
s|tojson
q|tojson
u|tojson
u|tojson(ensure_ascii=true)
'😀'|tojson(ensure_ascii=true)
html|tojson
d|tojson
l|tojson
f|tojson
1e20|tojson
none|tojson
true|tojson
(1, 2)|tojson
{1: 2, none: 3, true: 4, 1.5: 5}|tojson
[]|tojson
{}|tojson
[[], {}]|tojson(indent=2)
d|tojson(indent=2)
d|tojson(indent=0)
d|tojson(indent='\t')
d|tojson(sort_keys=true)
d|tojson(separators=(',', ':'))
d|tojson(indent=2, separators=(',', ': '))
d|tojson(true, 1)
d|tojson(bad=1)
nothing|tojson
range(3)|tojson
d.items()|tojson
{(1, 2): 3}|tojson
'\b\f\n\r\t\x01\x7f'|tojson
s|nonesuch
s is nonesuch
s is defined
s is not defined
s is undefined
none is none
none is not none
nothing is none
s is string
n is string
n is number
f is number
t is number
s is number
n is integer
t is integer
f is integer
f is float
n is float
t is boolean
n is boolean
t is true
n is true
false is false
0 is false
d is mapping
l is mapping
l is sequence
s is sequence
d is sequence
n is sequence
(1, 2) is sequence
range(3) is sequence
nothing is sequence
l is iterable
s is iterable
d is iterable
n is iterable
none is iterable
nothing is iterable
s.upper is callable
s is callable
range is callable
namespace is callable
n is odd
n is even
7 is odd
7.0 is odd
'a' is odd
n is divisibleby 7
n is divisibleby(5)
n is divisibleby 0
n is eq 42
n is equalto 42
n is == 42
n is ne 42
n is gt 41
n is greaterthan 41
n is ge 42
n is lt 43
n is lessthan 43
n is le 41
n is eq(42) and s is string
n is in [1, 42]
n is not in [1, 42]
'a' is in 'abc'
none is sameas none
l is sameas l
1 is sameas true
true is sameas true
'abc' is lower
'ABC' is upper
'Abc' is lower
'upper' is filter
'nonesuch' is filter
'odd' is test
not s is defined
s is defined and n is number or false
s is string is defined
1 is eq 1 if true else 2
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

# Whole templates.
TEMPLATES = [
    "{% if n %}a{% endif %}",
    "{% if none_value %}a{% elif n == 42 %}b{% else %}c{% endif %}",
    "{% if none_value %}a{% elif false %}b{% elif 0 %}c{% else %}d{% endif %}",
    "{% for x in l %}{{ x }},{% endfor %}",
    "{% for x in l %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for x in empty %}a{% else %}b{% endfor %}",
    "{% for x in none_value %}a{% endfor %}",
    "{% for x in n %}a{% endfor %}",
    "{% for c in s[:3] %}{{ c }}.{% endfor %}",
    "{% for c in u %}{{ c }}.{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}",
    "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}",
    "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for (a, b) in [[1, 2]] %}{{ a }}{{ b }}{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}",
    "{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l|sort %}{{ x }}{% endfor %}",
    "{% for x in range(3) %}{% for y in range(2) %}{{ loop.index }}{{ x }}{{ y }} {% endfor %}{{ loop.index0 }}{% endfor %}",
    "{% for x in l %}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('odd', 'even') }} {% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}-{{ loop.nextitem }};{% endfor %}",
    "{% for x in l %}{{ loop }}{% endfor %}",
    "{% for x in l %}{{ loop.nonesuch }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ y }}{% endfor %}{{ x }}{% endfor %}",
    "{% break %}",
    "{% for x in l %}{% set y = x %}{% endfor %}{{ y is defined }}",
    "{% set y = 1 %}{% for x in l %}{{ y }}{% set y = x %}{{ y }} {% endfor %}{{ y }}",
    "{% for x in l %}{% endfor %}{{ x is defined }}",
    "{% set x = 5 %}{% for x in l %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=0) %}{% for x in l %}{% set ns.x = ns.x + x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}{{ ns['a'] }}",
    "{% set ns = namespace() %}{% set ns._a = 1 %}",
    "{% set d.x = 1 %}",
    "{% set nothing.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1, 2, 3] %}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}",
    "{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
    "{% set a %}x{{ n }}y{% endset %}{{ a }}{{ a|length }}",
    "{% set a | upper %}x{{ s }}y{% endset %}{{ a }}",
    "{% set a | replace('x', 'z') | upper %}x{% endset %}{{ a }}",
    "{% if true %}{% set v = 1 %}{% endif %}{{ v }}",
    "{% if false %}{% set n = 1 %}{% endif %}{{ n }}",
    "{% set n = n + 1 %}{{ n }}",
    "{% set 1 = 2 %}",
    "{% set true = 2 %}",
    "{% set a.b.c = 2 %}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z is defined }}",
    "{% with a=1, b=n %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% with n=1, m=n %}{{ n }}{{ m }}{% endwith %}{{ n }}",
    "{% filter upper %}abc{{ s }}{% endfilter %}",
    "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}",
    "{% filter indent(2) %}a\nb{% endfilter %}",
    "{% macro m() %}x{% endmacro %}{{ m() }}{{ m() }}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}",
    "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(a, b=a ~ 'x') %}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m(a) %}{{ a }}{{ varargs|length }}{{ kwargs.x }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}body{{ n }}{% endcall %}",
    "{% macro m() %}<{{ caller(1, 2) }}>{% endmacro %}{% call(a, b) m() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}body{% endcall %}",
    "{% macro m() %}{{ 'y' if caller is defined else 'n' }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro m() %}{{ z }}{% endmacro %}{% set z = 3 %}{{ m() }}",
    "{% set z = 1 %}{% macro m() %}{{ z }}{% endmacro %}{% set z = 3 %}{{ m() }}",
    "{% macro m() %}{% set inner = 1 %}{% endmacro %}{{ m() }}{{ inner is defined }}",
    "{% macro m() %}a{% endmacro %}{{ m.name }}",
    "{% macro m() %}a{% endmacro %}{{ m()|upper }}{{ m() ~ 'b' }}{{ m()|length }}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{% for x in l %}{{ m(x) }}{% endfor %}",
    "{% generation %}a{{ n }}{% endgeneration %}b",
    "{% generation %}{% set gg = 1 %}{% endgeneration %}{{ gg is defined }}",
    "{% print n %}",
    "{# comment #}a{# {{ x }} {% if %} #}b",
    "{# a\nb #}\nc",
    "a {#- x -#} b",
    "{% raw %}{{ x }}{% endraw %}",
    "{% raw -%} a {%- endraw %}",
    "{%- raw %} {{ a }} {% endraw -%} b",
    "a\n  {% raw %}\n x {% endraw %}\nb",
    "{% raw %}{% if %}",
    "{{ '{{' }}{{ '}}' }}{{ '{%' }}",
    "{{ {'a': {'b': 1}}['a']['b'] }}",
    "{{ {'a': {}} }}",
    "a\n{% if true %}\nb\n{% endif %}\nc",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc",
    "a\n  {%+ if true %}\n  b\n  {%+ endif %}\nc",
    "a\n  {%- if true %}\n  b\n  {%- endif %}\nc",
    "a\n  {% if true -%}\n  b\n  {% endif -%}\nc",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc",
    "a\n{% if true +%}\nb\n{% endif +%}\nc",
    "  {{ 1 }}  \n  {{- 2 -}}  \n {{ 3 }}",
    "  {% if true %}x{% endif %}  ",
    "x  {% if true %}y{% endif %}  z",
    "\n\n{% if true %}\n\ny\n\n{% endif %}\n\n",
    "{% if true %}  {% if true %}\n  x\n  {% endif %}  {% endif %}",
    "a\n\t{# c #}\nb",
    "a\n  {#- c #}\nb",
    "a\n  {# c -#}\n  b",
    "a\n  {#+ c #}\nb",
    "{{ 1 }}\n{{ 2 }}\n",
    "{{ 1 }}\n\n",
    "\n",
    "",
    "plain",
    "a{{ 1 }}\n{% if true %}\nb{% endif %}",
    "{{ 1 }}  {% if true %}b{% endif %}",
    "\r\na\r{% if true %}\r\nb{% endif %}\r\n",
    "{{- 1 -}}\n{{- 2 -}}\n",
    "a \u2003{{- 1 }}",
    "{{ s|upper\n}}",
    "{{\n  n\n}}",
    "{%\nif n\n%}x{%\nendif\n%}",
    "{{n}}{{n}}",
    "{{-n-}}",
    "{{ -n }}",
    "{{- -n }}",
    "{%if n%}x{%endif%}",
    "{%-if n-%}x{%-endif-%}",
    "{{ n -}} x",
    "{{ n - 1 }}",
    "{{ 'a}}b' }}",
    "{{ \"%}\" }}",
    "{% if '%}' %}x{% endif %}",
    "{ { n } }",
    "{n}",
    "{",
    "{{ n }",
    "{{ n",
    "{% if n",
    "{% if n %}",
    "{% endif %}",
    "{% else %}",
    "{% if n %}{% endfor %}",
    "{% for x in l %}{% endif %}",
    "{% for %}{% endfor %}",
    "{% for x l %}{% endfor %}",
    "{% for x in %}{% endfor %}",
    "{% for 1 in l %}{% endfor %}",
    "{% unknown %}",
    "{% %}",
    "{{ }}",
    "{# x",
    "{% set x %}",
    "{% set %}",
    "{% macro %}{% endmacro %}",
    "{% macro m( %}{% endmacro %}",
    "{% call n %}{% endcall %}",
    "{% if n: %}x{% endif %}",
    "{% if n %}a{% else %}b{% elif n %}c{% endif %}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.reset() }}{{ c.next() }}",
    "{% set j = joiner('; ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "{% set j = joiner() %}{{ j() }}{{ j() }}{{ j() }}",
    "{% set g = l|map('string') %}{{ g|join }}{{ g|join }}",
    "{% set g = l|select('odd') %}{% for x in g %}{{ x }}{% endfor %}|{% for x in g %}{{ x }}{% endfor %}",
    "{% if l|select('gt', 100) %}truthy{% endif %}",
    "{% for x in d['a'] recursive %}{{ x }}{% endfor %}",
    "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(l) }}{% endfor %}",
    "{% for item in rows %}{{ item.name }}{% if item.tags %}{{ item.tags[0] }}{% endif %} {% endfor %}",
    "{% for r in rows|groupby('age') %}{{ r.grouper }}:{% for x in r.list %}{{ x.name }},{% endfor %};{% endfor %}",
    "{% for age, people in rows|groupby('age') %}{{ age }}={{ people|length }} {% endfor %}",
    "{% for row in range(7)|batch(3, '-') %}{{ row|join }}|{% endfor %}",
    "{% for i in range(3) %}{{ 'x' * i }}{% endfor %}",
    "{% for i in range(l|length - 1, -1, -1) %}{{ l[i] }}{% endfor %}",
    "{% if s is string and s|length > 3 and 'World' in s %}ok{% endif %}",
    "{% if not (n == 1 or n == 2) %}ok{% endif %}",
    "{% if d.get('b') is not none and d.b == 1 %}ok{% endif %}",
    "{% if rows[0].tags and rows[1].tags is not none %}ok{% endif %}",
    "{% set x = 1 if n == 42 else 2 %}{{ x }}",
    "{% set x = [] %}{% for i in l %}{% set x = x + [i] %}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=[]) %}{% for i in l %}{% set ns.x = ns.x + [i * 2] %}{% endfor %}{{ ns.x|join(' ') }}",
    "{% set x = {'a': 1} %}{{ x.a }}{{ x['a'] }}{{ x }}",
    "{% do l %}",
    "{{ s|upper }}{{ s|lower|replace('o', '0') }}\n\nend",
    "{% if n == 42 %}\n  yes\n{% else %}\n  no\n{% endif %}\ntail\n",
    "{% for x in l -%}\n  {{ x }}\n{%- endfor %}",
    "{% for x in l %}\n  {{- x }}\n{% endfor %}",
    "{% for x in l %}\n{{ x }}\n{% endfor %}\n",
    "{% for x in l %}{{ x }}\n\n{% endfor %}",
    "{% set x = 1 %}\n{% set y = 2 %}\n{{ x }}{{ y }}\n",
    "{{ n }}{# c #}\n{{ n }}",
    "{% if true %}a{% endif -%}\n\n b",
    "{% import 'a' as b %}",
    "{% from 'a' import b %}",
    "{% extends 'a' %}",
    "{% include 'a' %}",
    "{% set caller = 1 %}{% macro m() %}{{ caller }}{% endmacro %}{{ m(caller='x') }}",
    "{% macro m(caller) %}{{ caller() }}{% endmacro %}{% call m() %}z{% endcall %}",
    "{% macro o() %}{% macro i() %}{{ caller() }}{% endmacro %}{% call i() %}q{% endcall %}{% endmacro %}{{ o() }}",
    "{% set m = s.upper %}{{ m() }}",
    "{% set f = '{}!'.format %}{{ f(1) }}",
    "{% set r = range %}{{ r(2)|list }}",
    "{% for x in l %}{% set loop = 1 %}{{ loop }}{% endfor %}",
    "{% for loop in l %}{{ loop }}{% endfor %}",
    "{{ loop is defined }}{% for x in [1] %}{{ loop is defined }}{% endfor %}",
    "{% for x in l %}{% if loop.first %}{% for y in l %}{{ loop.index }}{% endfor %}{% endif %}{{ loop.index }}{% endfor %}",
    "{% for k in d.keys()|sort %}{{ k }}{% endfor %}",
    "{% for x in (1, 2) %}{{ x }}{% endfor %}",
    "{% for x in 1, 2 %}{{ x }}{% endfor %}",
    "{% for x in l + [9] %}{{ x }}{% endfor %}",
    "{% for x in l if loop %}{% endfor %}",
    "{% for x in l[1:] %}{{ x }}{% endfor %}",
    "{% for x in l[::-1] %}{{ x }}{% endfor %}",
    "{% if n is divisibleby 2 %}even{% endif %}",
    "{% if s.startswith('H') and not s.endswith('x') %}y{% endif %}",
    "{{ raise_exception('a\nb') }}",
    "{% if false %}{{ raise_exception('x') }}{% endif %}fine",
    "{{ 'x' if true else raise_exception('x') }}",
]


def snippets():
    result = []
    for expression in EXPRESSIONS:
        result.append("{{ " + expression + " }}")
    return result + TEMPLATES
