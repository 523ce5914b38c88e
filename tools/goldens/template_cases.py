"""Templates, messages and snippets for make_template_goldens.py.

The templates are our own. Together they use the constructs that the published
templates of the common model families use.
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather at a <place> & \"time\"",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Città"},
                    "days": {"type": "integer", "default": 3, "minimum": 0.5},
                    "units": {"type": ["string", "null"], "enum": ["C", "F", None]},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "parameters": {}}},
]

CHAT = [
    {"role": "system", "content": "  You are brief.\n"},
    {"role": "user", "content": "Hello! "},
    {"role": "assistant", "content": "Hi. <think>\nhm\n</think>\n\nHow are you?"},
    {"role": "user", "content": "Fine, 日本語 <|im_end|>?"},
]

TOOL_CHAT = [
    {"role": "user", "content": "Weather in Roma?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call12345",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"place": "Roma", "days": 2}},
            },
            {
                "id": "call67890",
                "type": "function",
                "function": {"name": "stop", "arguments": "{}"},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": "{\"t\": 31.5}"},
    {"role": "tool", "tool_call_id": "call67890", "name": "stop", "content": "ok"},
    {"role": "assistant", "content": "31.5 °C", "reasoning_content": "easy"},
    {"role": "user", "content": "Thanks"},
]

# Several tool steps before an answer, reasoning in each, a second question, and
# parallel calls whose results come in another order.
MULTI_STEP_CHAT = [
    {"role": "system", "content": "Use tools."},
    {"role": "user", "content": "Warmer in Roma or Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I need both.\nRoma first.",
        "tool_calls": [
            {"id": "a00000001", "type": "function",
             "function": {"name": "get_weather", "arguments": {"place": "Roma"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "a00000001", "name": "get_weather", "content": "31"},
    {
        "role": "assistant",
        "content": "Now Oslo.",
        "reasoning_content": "",
        "tool_calls": [
            {"id": "a00000002", "type": "function",
             "function": {"name": "get_weather",
                          "arguments": {"place": "Oslo", "days": 1, "units": None}}},
            {"id": "a00000003", "type": "function",
             "function": {"name": "stop", "arguments": {}}},
        ],
    },
    {"role": "tool", "tool_call_id": "a00000003", "name": "stop", "content": "<ok> & 'done'"},
    {"role": "tool", "tool_call_id": "a00000002", "name": "get_weather", "content": "\n12.5\n"},
    {"role": "assistant", "content": "Roma.", "reasoning_content": "31 > 12.5"},
    {"role": "user", "content": "<tool_response>\nfake\n</tool_response>"},
    {"role": "assistant", "content": "<think>inline</think>No.", "tool_calls": []},
    {"role": "user", "content": "Sure?"},
]

BASE = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}

CONTEXTS = {
    "chat": {**BASE, "messages": CHAT},
    "no_system": {**BASE, "messages": CHAT[1:]},
    "no_prompt": {**BASE, "messages": CHAT[:3], "add_generation_prompt": False},
    "tools": {**BASE, "messages": TOOL_CHAT, "tools": TOOLS},
    "tools_null": {**BASE, "messages": CHAT, "tools": None, "enable_thinking": False},
    "thinking": {**BASE, "messages": CHAT[:2], "enable_thinking": True, "date_string": "01 Jan 2025"},
    "bad_order": {**BASE, "messages": [CHAT[1], CHAT[1]]},
    "bad_role": {**BASE, "messages": [{"role": "critic", "content": "x"}]},
    "empty": {**BASE, "messages": []},
    "parts": {
        **BASE,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image"},
                    {"type": "text", "text": " And that?"},
                ],
            }
        ],
    },
    "documents": {
        **BASE,
        "messages": CHAT[:2],
        "documents": [{"title": "A", "text": "first"}, {"title": "B", "text": "second\nline"}],
    },
}

CONTEXTS["multi_step"] = {
    **BASE, "messages": MULTI_STEP_CHAT, "tools": TOOLS, "enable_thinking": True,
    "reasoning_effort": "low", "date_string": "26 Jul 2024"}
# Cut where a tool has just answered, and where the last turn goes on.
CONTEXTS["after_tool"] = {**CONTEXTS["multi_step"], "messages": MULTI_STEP_CHAT[:7]}
CONTEXTS["unfinished"] = {
    **BASE, "messages": MULTI_STEP_CHAT[:8], "add_generation_prompt": False,
    "continue_final_message": True, "tools": []}
CONTEXTS["grounded"] = {
    **CONTEXTS["documents"], "tools": TOOLS, "messages": TOOL_CHAT,
    "documents": [{"title": "A <b>", "text": "é \"quoted\"", "id": 7}, {"text": ""}]}

ALL = list(CONTEXTS)

# Pieces that several templates are made of.
LOOPS = {
    "plain": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}",
    "index": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else '' }}\n{% endfor %}",
    "dashes": "{%- for m in messages -%}\n  [{{- m.role -}}]  {{- m.content -}}\n{%- endfor -%}",
    "loop_vars": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ' first' if loop.first }}{{ ' last' if loop.last }} {{ m.role }} {{ loop.revindex0 }}\n{% endfor %}",
}

PROMPTS = {
    "none": "",
    "if": "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "inline": "{{ '<|assistant|>' if add_generation_prompt }}",
}


def templates():
    """(name, source, names of contexts)"""
    for loop_name, loop in LOOPS.items():
        for prompt_name, prompt in PROMPTS.items():
            yield f"simple_{loop_name}_{prompt_name}", "{{ bos_token }}" + loop + prompt, [
                "chat", "no_prompt", "tools", "empty", "parts",
            ]

    yield "system_first", """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}<<SYS>>{{ system }}<</SYS>>
{% for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate: got ' ~ message['role'] ~ ' at ' ~ loop.index0) }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('unknown role') }}
    {%- endif %}
{%- endfor %}""", ["chat", "no_system", "bad_order", "bad_role", "empty", "tools"]

    yield "dated_tools", """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|head|>system<|/head|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: tools\\n" }}{%- endif %}
{{- "Today: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("no first user message for the tools") }}
    {%- endif %}
    {{- '<|head|>user<|/head|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user + "<|eot|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- for call in message.tool_calls %}
            {%- set call = call.function %}
            {{- '{"name": "' + call.name + '", "parameters": ' }}
            {{- call.arguments | tojson }}
            {{- "}" }}
        {%- endfor %}
        {{- "<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|head|>tool<|/head|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|head|>assistant<|/head|>\\n\\n' }}
{%- endif %}
""", [c for c in ALL if c != "parts"]

    yield "multi_step_tool", """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages and messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""", ALL

    yield "split_system_selectattr", """{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\\n') | trim %}
{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list %}
{%- set loop_messages = turns %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message.role != 'user') and (message.role != 'assistant') and (message.role != 'tool') %}
        {{- raise_exception("Only user and assistant roles are supported, not " + message.role + "!") }}
    {%- endif %}
    {%- if loop.last and loop.first or loop.index0 == 0 and system %}
        {{- system ~ '\\n\\n' }}
    {%- endif %}
    {{- '<turn>' ~ (message.role if message.role != 'assistant' else 'model') ~ '\\n' ~ (message.content or '') | trim ~ '</turn>\\n' }}
{%- endfor %}
{{- '<turn>model\\n' if add_generation_prompt else '' }}""", ALL

    yield "content_parts", """{%- for message in messages -%}
{{- '<' ~ message.role ~ '>' -}}
{%- if message['content'] is string -%}
    {{ message['content'] | trim }}
{%- elif message['content'] is iterable -%}
    {%- for item in message['content'] -%}
        {%- if item['type'] == 'image' -%}
            {{ '<image_soft_token>' }}
        {%- elif item['type'] == 'text' -%}
            {{ item['text'] | trim }}
        {%- endif -%}
    {%- endfor -%}
{%- else -%}
    {{ raise_exception("Invalid content type") }}
{%- endif -%}
{{ '</>' }}
{%- endfor -%}""", ["parts", "chat", "tools"]

    yield "documents", """{{ bos_token }}
{%- if documents %}
    {%- for document in documents %}
        {{- '<doc id="' ~ loop.index ~ '">\\n' ~ document.title | upper ~ '\\n' ~ document['text'] | indent(2) ~ '\\n</doc>\\n' }}
    {%- endfor %}
{%- else %}{{ 'no documents' }}{% endif %}
{% for m in messages if m.role != 'system' %}{{ loop.index }}. {{ m.content }}
{% else %}nobody spoke{% endfor %}""", ["documents", "chat", "empty"]

    yield "macros", """{%- macro render(value, level=0, open='{', close='}') -%}
  {%- if value is mapping -%}
    {{ open }}
    {%- for key, item in value | dictsort -%}
      {{ '  ' * level }}{{ key }}: {{ render(item, level + 1, open=open) }}{{ ', ' if not loop.last }}
    {%- endfor -%}
    {{ close }}
  {%- elif value is string -%}"{{ value }}"
  {%- elif value is sequence -%}[{% for item in value %}{{ render(item, level + 1) }}{{ ';' if not loop.last else '' }}{% endfor %}]
  {%- elif value is none -%}null
  {%- else -%}{{ value }}
  {%- endif -%}
{%- endmacro -%}
{% for t in tools or [] %}
{{ t.function.name }}: {{ render(t.function.parameters) }}
{% endfor %}
{% macro wrap(tag) %}<{{ tag }}>{{ caller(tag|upper) }}</{{ tag }}>{% endmacro %}
{% for m in messages %}
{% call(name) wrap(m.role) %}{{ name }}={{ m.content or '-' }}{% endcall %}

{% endfor %}""", ["tools", "chat", "empty"]

    yield "typescript", """{%- macro ts(p) -%}
    {%- if p.type == "array" -%}{{ ts(p['items']) ~ '[]' if p['items'] else 'any[]' }}
    {%- elif p.type is iterable and p.type is not string and p.type[0] -%}
        {{- p.type | join(" | ") -}}
        {%- if p.enum %} /* {{ p.enum | map('default', 'null', true) | join('/') }} */{% endif -%}
    {%- elif p.type == "object" and p.properties -%}
        {{ '{' }}{% for name, q in p.properties.items() %}{{ name }}{{ '?' if name not in (p.required or []) }}: {{ ts(q) }}{{ ', ' if not loop.last }}{% endfor %}{{ '}' }}
    {%- elif p.type in ['integer', 'number'] -%}number{% if p.default is defined %} = {{ p.default }}{% endif %}
    {%- else -%}{{ p.type | default('any') }}{%- endif -%}
{%- endmacro -%}
{% for tool in tools %}
// {{ tool.function.description | default('no description', true) }}
type {{ tool.function.name }} = (_: {{ ts(tool.function.parameters) }}) => any;
{% endfor %}""", ["tools", "empty"]

    yield "generation_tag", """{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}
{{ m.content }}{{ eos_token }}
{% endgeneration %}
{% else %}
{{ m.role }}: {{ m.content }}
{% endif %}
{% endfor %}""", ["chat", "tools"]

    yield "ids_checked", """{%- for m in messages %}
{%- if m.tool_calls is defined and m.tool_calls is not none %}
{%- for c in m.tool_calls %}
{%- if c.id is not defined or c.id|length != 9 %}{{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}{%- endif %}
{{- c.function|tojson|string ~ ', "id": "' ~ c.id ~ '"' }}{{ "]" if loop.last else ", " }}
{%- endfor %}
{%- elif m.role == 'tool' %}{{ '{"content": ' ~ m.content|string ~ ', "call_id": "' ~ m.tool_call_id ~ '"}' }}
{%- else %}{{ m.content }}
{%- endif %}
{%- endfor %}""", ["tools", "chat"]

    yield "namespaces", """{% set ns = namespace(is_first=false, output='', count=0, tool_names=[]) %}
{%- for m in messages %}{%- if m['role'] == 'system' %}{% set ns.output = ns.output + m['content'] %}{%- endif %}{% set ns.count = ns.count + 1 %}{%- endfor %}
{{- bos_token }}{{ ns.output }}|{{ ns.count }}
{%- for m in messages %}
{%- if m['role'] == 'tool' %}{%- if not ns.is_first %}{{ '<outputs>' }}{%- set ns.is_first = true %}{%- endif %}{% set ns.tool_names = ns.tool_names + [m.name] %}
{%- else %}{%- if ns.is_first %}{{ '</outputs>' }}{%- endif %}{% set ns.is_first = false %}{%- endif %}
{%- endfor %}{{ ns.tool_names }}{{ ns.tool_names | join(',') }}""", ["chat", "tools", "empty"]

    yield "breaks", """{% for m in messages %}
{% if m.role == 'assistant' %}{% continue %}{% endif %}
{% if loop.index > 3 %}{% break %}{% endif %}
{{ loop.index }} {{ m.role }}
{% endfor %}""", ["chat", "tools"]

    yield "capture", """{% set text %}
  {% for m in messages %}{{ m.content }}; {% endfor %}

{% endset %}
[{{ text | trim }}]
{% filter upper | replace('HELLO', 'bye') %}{{ text }}{% endfilter %}
{% set short | trim | upper %}  {{ messages[0].content[:4] if messages }}  {% endset %}{{ short }}
{% with a = messages|length, b = 2 %}{{ a * b }}{% set a = 9 %}{{ a }}{% endwith %}{{ a is defined }}""", ["chat", "empty"]

    yield "last_messages", """{{ messages[-1].content }}|{{ (messages | last).role }}|{{ (messages|first)['role'] }}|{{ messages[-2:] | map(attribute='role') | list }}|{{ messages[0].missing is defined }}|{{ messages[0].get('name', 'anon') }}|{{ messages[0]['nope'] | default('d') }}|{{ messages[0].keys() | list }}""", ["chat", "tools", "empty"]

    yield "undefined_use", "{{ messages[0].function.name }}", ["chat", "empty"]
    yield "undefined_call", "{{ nothing() }}", ["chat"]
    yield "undefined_iter", "a{% for x in nothing %}{{ x }}{% else %}b{% endfor %}{{ nothing }}", ["chat"]
    yield "raise_plain", "text {{ raise_exception('stop: ' ~ messages|length) }}", ["chat"]
    yield "raise_in_macro", "{% macro f(x) %}{% if x.role == 'critic' %}{{ raise_exception('no ' + x.role) }}{% endif %}.{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}", ["chat", "bad_role"]

    yield "system_merge", """{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
  {%- if m.role in ('system', 'developer') -%}
    {%- set ns.system = (ns.system ~ '\\n' if ns.system else '') ~ m.content.strip() -%}
  {%- endif -%}
{%- endfor -%}
{%- set last_user = namespace(index=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last_user.index = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages if m.role not in ['system', 'developer'] -%}
  {%- set is_last = messages.index(m) == last_user.index -%}
  <|{{ m.role }}|>{{ (ns.system ~ '\\n\\n') if is_last and ns.system }}{{ m.content if m.content is not none else '' }}<|end|>
{% endfor -%}""", ALL

    yield "modes", """{%- set reasoning_mode = "/think" if (enable_thinking is not defined or enable_thinking) else "/no_think" -%}
{%- set custom = (messages[0].content if messages and messages[0].role == 'system' else '') -%}
{%- if "/no_think" in custom -%}{%- set custom = custom.replace("/no_think", "").rstrip() -%}{%- endif -%}
{{ "## Metadata\\n\\n" }}{% set today = strftime_now("%d %B %Y") %}{{ "Today Date: " ~ today ~ "\\n" }}{{ "Reasoning Mode: " + reasoning_mode + "\\n\\n" -}}
{{ custom.rstrip() }}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else "" -%}
{%- if message.role == "user" -%}{{ "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n" }}
{%- elif message.role == "assistant" -%}{% generation %}{%- if reasoning_mode == "/think" -%}{{ "A\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}{%- else -%}{{ "B\\n<think>\\n\\n</think>\\n" + content.lstrip("\\n") }}{%- endif -%}{% endgeneration %}
{%- endif -%}
{%- endfor -%}""", ALL

    yield "newlines_kept", "a\n\nb\n{% if true %}\n\nc\n{% endif %}\n\n{{ 1 }}\n\n{# x #}\nd\n\n", ["chat"]
    yield "windows_newlines", "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n", ["chat"]
    yield "raw_block", "{% raw %}{{ not this }} {% nor this %}{% endraw %}\n{%- raw -%}  {# x #}  {%- endraw -%}  {{ 1 }}", ["chat"]
    yield "recursive", "{% for m in messages recursive %}{{ loop.depth }}{{ m if m is string else m.role }}{% if m is mapping %}({{ loop([m.role, 'z']) }}){% endif %}{% endfor %}", ["chat", "tools"]
    yield "include_is_missing", "{% include 'x' %}", ["empty"]
    yield "import_is_missing", "{% import 'x' as y %}", ["empty"]
    yield "extends_is_missing", "{% extends 'x' %}", ["empty"]
    yield "json_variants", "{% for t in tools or messages %}{{ t | tojson }}\n{{ t | tojson(indent=2) }}\n{{ t|tojson(ensure_ascii=true) }}\n{{ t|tojson(separators=(',', ':')) }}\n{{ t|tojson(sort_keys=true) }}\n{{ t }}{% endfor %}", ["tools", "chat"]
    yield "loop_neighbours", "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '^' }}<{{ m.role }}>{{ loop.nextitem.role if not loop.last else '$' }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }} {% endfor %}", ["chat", "tools"]
    yield "join_map", "{{ messages | map(attribute='role') | map('upper') | join(', ') }} {{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ messages | groupby('role') | map('first') | list }}", ["chat", "tools"]


SNIPPET_CONTEXT = {
    "s": "Hello World",
    "u": "Ünïcödé ΑΒΓ жук 日本",
    "n": 42,
    "f": 3.75,
    "neg": -7,
    "t": True,
    "none_value": None,
    "l": [3, 1, 2],
    "w": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [1, 2], "C": {"x": None}},
    "rows": [
        {"name": "Zoe", "age": 31, "tags": ["x"]},
        {"name": "adam", "age": 25, "tags": []},
        {"name": "Bob", "age": 31},
    ],
    "empty": [],
    "q": "it's \"quoted\"\n\ttab \\ é\u200b",
    "lines": "one\n two\r\n\nthree\n",
    "html": "<a href=\"x\">&'</a>",
    "tag": "<|im_end|>",
}


def snippets():
    import snippet_cases

    return snippet_cases.snippets()
