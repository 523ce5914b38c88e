"""Filters and tests of Jinja, for snippet_cases.py."""

FILTERS = r"""
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
{'class': 'a b', 'id': 7, 'none': none, 'title': '<&"\'>'}|xmlattr
{'a': nothing, 'b': 1.5}|xmlattr
{'a': u, 'b': tag}|xmlattr(false)
{}|xmlattr
{'a b': 1}|xmlattr
{'a>': 1}|xmlattr
{'é': [1, 'x']}|xmlattr(autospace=false)
{1: 2}|xmlattr
l|xmlattr
nothing|xmlattr
0|filesizeformat
1|filesizeformat
1.0|filesizeformat
1.9|filesizeformat
-5|filesizeformat
999|filesizeformat
1000|filesizeformat
1023|filesizeformat(true)
1024|filesizeformat(true)
13000|filesizeformat
1234567|filesizeformat(binary=true)
4096000000000|filesizeformat
1e24|filesizeformat
1e30|filesizeformat
'1500'|filesizeformat
true|filesizeformat
'x'|filesizeformat
none|filesizeformat
l|filesizeformat
nothing|filesizeformat
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
""".strip().split("\n")
