"""Golden chat renderings: templates in the families' styles, rendered by transformers.

Needs ``pip install transformers torch==2.13.0 jinja2``. Run it as

    python make_templates.py

It writes ``templates.json`` beside itself: ``templates`` by name, written for these tests so that each uses what the
templates of some families use; ``conversations`` by name, each with ``messages`` and, where it has them, ``tools``,
``documents`` and ``variables``; and ``rendered``, by template and conversation: the ``text`` that transformers gives,
and what it is when the answer's turn is ``opened``, or only what that ``adds`` at the end; null where the template
refuses the conversation.

    python make_templates.py --compare FOLDER

renders every real template ``FOLDER/*.jinja`` by pyllm, which must then be installed as well, and by transformers, and
prints where they differ. Those are not kept here, since most are under their models' own terms.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

HERE = Path(__file__).parent
BOS, EOS = "<s>", "</s>"

# ---- templates -------------------------------------------------------------------------------------------------------

TEMPLATES = {
    # control tokens around everything, an optional system turn of the template's own, `in` and `not`
    "qwen 2": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'Be helpful.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    # thoughts cut out of old answers, from the last question on kept; switched by a variable
    "qwen 3": """\
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and
           not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif loop.previtem is defined and loop.previtem.role == message.role %}
        {{- '<|im_start|>again\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    # headers, trimmed contents, a date, tools in the first question, one call at a time
    "llama 3": """\
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%%") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- if tools is not none and messages %}
    {%- set first = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is not string and message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
""",
    # turns that must alternate, tools before the last question, ids of calls checked
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
""",
    # roles with other names, parts of content, a system text before the first question
    "gemma": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}
""",
    # flags in a namespace, what follows the last thought, tools' answers in a block
    "deepseek r1": """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}
{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}
    {%- if message['role'] == 'assistant' and 'tool_calls' in message %}
        {%- set ns.is_tool = false -%}
        {%- for tool in message['tool_calls'] %}
            {%- if not ns.is_first %}{{'<|Assistant|><|tool_calls_begin|>'}}{%- set ns.is_first = true -%}
            {%- else %}{{'\\n'}}{%- endif %}
            {{- '<|tool_call_begin|>' + tool['type'] + '<|tool_sep|>' + tool['function']['name'] + '\\n```json\\n' }}
            {{- tool['function']['arguments'] if tool['function']['arguments'] is string
                else tool['function']['arguments'] | tojson }}{{ '\\n```<|tool_call_end|>' }}
        {%- endfor %}{{'<|tool_calls_end|><|end_of_sentence|>'}}
    {%- elif message['role'] == 'assistant' %}
        {%- if ns.is_tool %}
            {{- '<|tool_outputs_end|>' + message['content'] + '<|end_of_sentence|>'}}{%- set ns.is_tool = false -%}
        {%- else %}
            {%- set content = message['content'] %}
            {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
            {{- '<|Assistant|>' + content + '<|end_of_sentence|>'}}
        {%- endif %}
    {%- endif %}
    {%- if message['role'] == 'tool' %}
        {%- set ns.is_tool = true -%}
        {%- if ns.is_output_first %}{{'<|tool_outputs_begin|>'}}{%- set ns.is_output_first = false %}{%- endif %}
        {{- '<|tool_output_begin|>' + message['content'] + '<|tool_output_end|>'}}
    {%- endif %}
{%- endfor -%}
{% if ns.is_tool %}{{'<|tool_outputs_end|>'}}{% endif %}
{%- if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|><think>\\n'}}{% endif %}
""",
    # macros that call each other, documents, JSON written by hand
    "command r": """\
{{ bos_token }}
{%- macro json_type(spec) -%}
    {%- if spec.type == 'array' -%}List[{{ json_type(spec['items']) }}]
    {%- elif spec.type == 'object' -%}Dict
    {%- else -%}{{ {'string': 'str', 'integer': 'int', 'number': 'float', 'boolean': 'bool'}[spec.type] }}{%- endif -%}
{%- endmacro -%}
{%- macro arguments(tool) -%}
    {%- for name, spec in tool.parameters.properties.items() -%}
        {{ name }}: {{ 'Optional[' if name not in tool.parameters.required else '' }}{{ json_type(spec) }}
        {{- ']' if name not in tool.parameters.required else '' }}{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro -%}
{%- if tools %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' }}{{ '## Tools' }}
{% for tool in tools | map(attribute='function') %}
```python
def {{ tool.name }}({{ arguments(tool) }}):
    \"\"\"{{ tool.description }}\"\"\"
```
{% endfor %}
{{- '<|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role|lower == 'tool' %}{% continue %}{% endif %}
    {%- set name = {'user': 'USER', 'system': 'SYSTEM', 'developer': 'SYSTEM', 'assistant': 'CHATBOT'}[message.role] %}
    {{- '<|START_OF_TURN_TOKEN|><|' ~ name ~ '_TOKEN|>' ~ (message.content or '') ~ '<|END_OF_TURN_TOKEN|>' }}
{%- endfor %}
{%- if documents %}
{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><results>' }}
{% for document in documents %}
Document: {{ loop.index0 }}
{% for key, value in document|items %}
{{ key }}: {{ value }}
{% endfor %}
{% endfor %}
{{- '</results><|END_OF_TURN_TOKEN|>' }}
{%- endif %}
{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}
""",
    # channels, roles joined into control tokens, TypeScript, thinking in its own turn
    "gpt oss": """\
{%- macro ts(spec, depth=0) -%}
    {%- if spec.enum -%}{{ spec.enum | map('tojson') | join(' | ') }}
    {%- elif spec.type == 'object' -%}{{ '{' }}
        {%- for name, inner in (spec.properties or {}) | dictsort -%}
            {{- '\\n' + '  ' * (depth + 1) + name + ('' if name in (spec.required or []) else '?') + ': ' }}
            {{- ts(inner, depth + 1) }}
        {%- endfor -%}{{ '\\n' + '  ' * depth + '}' }}
    {%- elif spec.type == 'array' -%}{{ ts(spec['items'], depth) }}[]
    {%- else -%}{{ spec.type | default('any', true) }}{%- endif -%}
{%- endmacro -%}
{{- '<|start|>system<|message|>Reasoning: ' + (reasoning_effort | default('medium')) + '<|end|>' }}
{%- if tools %}
    {{- '<|start|>developer<|message|># Tools\\n' }}
    {%- for tool in tools %}
        {{- 'type ' + tool.function.name + ' = (_: ' + ts(tool.function.parameters) + ') => any;\\n' }}
    {%- endfor %}{{- '<|end|>' }}
{%- endif %}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if message.thinking and not loop.last -%}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' ~ message.thinking ~ '<|end|>' -}}
        {%- endif -%}
        {%- for call in message.tool_calls or [] -%}
            {{- '<|start|>assistant to=functions.' + call.function.name + '<|channel|>commentary json<|message|>' -}}
            {{- call.function.arguments | tojson -}}{{- '<|call|>' -}}
        {%- endfor -%}
        {%- if message.content -%}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' -}}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {{- '<|start|>functions.' + message.name + ' to=assistant<|channel|>commentary<|message|>' -}}
        {{- message.content | tojson + '<|end|>' -}}
    {%- else -%}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
""",
    # text outside of tags, whose line ends trim_blocks and lstrip_blocks decide about; blocks, comments, whitespace
    "granite": """\
{%- set system %}
  Today's answer{# a comment #} is {{ 'short' if not documents else 'long' }}.
  {% if tools %}
  Tools: {{ tools | map(attribute='function.name') | join(', ') }}.
  {% endif %}
{% endset -%}
<|start_of_role|>system<|end_of_role|>{{ system | trim }}<|end_of_text|>
{% for message in messages %}
  {% if message.role == 'tool' and loop.nextitem is undefined %}
    {% break %}
  {% endif %}
  {% generation %}
<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content | default('', true) | indent(2) }}<|end_of_text|>
  {% endgeneration %}
{% endfor %}
{% for document in documents or [] %}
<|start_of_role|>document {{ document.title | tojson(ensure_ascii=true) }}<|end_of_role|>
{{ document | tojson(indent=2, sort_keys=true, separators=(',', ' : ')) }}<|end_of_text|>
{% endfor %}
{% if add_generation_prompt %}
<|start_of_role|>assistant<|end_of_role|>
{% endif %}
""",
    # messages that talk to the template, other white space
    "smol 3": """\
{%- if messages[0].role == "system" and "/no_think" in messages[0].content -%}
    {%- set mode = "/no_think" -%}
{%- else -%}
    {%- set mode = "/think" if enable_thinking | default(true) else "/no_think" -%}
{%- endif -%}
<|im_start|>system
Mode: {{ mode }}
{%- for message in messages -%}
    {%- if message.role == "system" -%}
        {{- "\\n" + message.content.replace("/no_think", "").replace("/think", "").rstrip() -}}
    {%- endif -%}
{%- endfor -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages | rejectattr("role", "in", ["system", "tool"]) -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "assistant" and mode == "/no_think" -%}
        {{- "<|im_start|>" + message.role + "\\n<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" -}}
    {%- else -%}
        {{- "<|im_start|>" + message.role + "\\n" + content | replace("\\n\\n", "\\n") + "<|im_end|>\\n" -}}
    {%- endif -%}
{%- endfor -%}
""",
    # the bare minimum of the first chat models; roles inside control tokens
    "phi": """\
{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] %}{{'<|' + message['role'] + '|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}""",
    # filters, tests and methods of many templates
    "many ways": """\
{% for m in messages %}{% set c = m.content | default('', true) %}
{{ loop.cycle('<|a|>', '<|b|>') }}{{ c.upper() }}|{{ c | length }}|{{ c.split() | join('_') }}|{{ c[::-1] }}
{{ c.startswith(('He', 'You')) }}|{{ c is none }}|{{ c is sequence }}|{{ m is mapping }}|{{ m.keys() | list | length }}
{{ c.find('e') }}|{{ c.count('e') }}|{{ c.strip('.! ') }}|{{ c | capitalize }}|{{ c | truncate(9) }}|{{ c | wordcount }}
{{ 'x' if c else 'y' }}|{{ (c | list)[:2] }}|{{ c | first | default('') }}|{{ c ~ 1 ~ none ~ true }}|{{ '%s!' % c }}
{{ "a"|safe + c }}|{{ [c, 'z'] | sort | first }}|{{ {'k': c} | tojson }}|{{ [1, c] | string }}|{{ c | trim | title }}
{{ dict(a=1, **{'b': c})['b'] }}|{{ namespace(x=c).x }}|{{ c in 'Hello' }}|{{ c | replace('e', '<|e|>', 1) }}
{% endfor %}{% filter upper %}{{ messages | map(attribute='role') | unique | join(',') }}{% endfilter %}
""",
}


# ---- conversations ---------------------------------------------------------------------------------------------------


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": content, **more}


WEATHER = {
    "name": "get_weather", "description": 'The weather <b>now</b> & "here", in \u00b0C.',
    "parameters": {
        "type": "object", "required": ["city"],
        "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]},
                       "days": {"type": "array", "items": {"type": "integer"}}},
    },
}  # fmt: skip
TOOLS = [{"type": "function", "function": WEATHER}]
CALL = {"id": "call12345", "type": "function",
        "function": {"name": "get_weather", "arguments": {"city": "Z\u00fcrich <x>", "days": [3]}}}  # fmt: skip
ANSWER = said("tool", '{"sun": true}', tool_call_id="call12345", name="get_weather")
THOUGHT = "<think>\nadd\n</think>\n\nfour"
DOCUMENTS = [{"title": "T & \u00e9", "text": "one <1>"}, {"title": "U", "text": "two"}]

SHORT = [said("system", "/no_think ok"), said("user", "a"), said("assistant", "b"), said("user", "c")]
ASKED = [said("user", "weather?"), said("assistant", None, tool_calls=[CALL]), ANSWER]
TWO = [CALL, {**CALL, "id": "call1234x"}]
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one": {"messages": [said("user", "Hello there.")]},
    "several": {"messages": [
        said("system", " You are <b> & 'good'. "), said("user", "Hi\n\nthere \n"),
        said("assistant", "\n yes </think> no"), said("user", "and \u00e9 \u6f22?"),
    ]},
    "thoughts": {"messages": [
        said("user", "2+2?"), said("assistant", THOUGHT), said("user", "3?"), said("assistant", THOUGHT),
    ]},
    "reasoning": {"messages": [said("user", "2+2?"), said("assistant", "four", reasoning="add\n"), said("user", "3?")]},
    "switched": {
        "messages": SHORT,
        "variables": {"enable_thinking": False, "reasoning_effort": "high", "date_string": "1 May"},
    },
    "tools": {"messages": [said("user", "weather?")], "tools": TOOLS},
    "a call": {"messages": ASKED, "tools": TOOLS},
    "two calls": {"messages": [
        said("user", "weather?"), said("assistant", "Let me see.", tool_calls=TWO), ANSWER,
        {**ANSWER, "content": "rain"}, said("assistant", "Sun, then rain."), said("user", "thanks"),
    ], "tools": TOOLS},
    "documents": {"messages": [said("user", "who?")], "documents": DOCUMENTS},
    "parts": {"messages": [said("user", [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}])]},
    "twice": {"messages": [said("user", "a"), said("user", "b")]},
}  # fmt: skip


# ---- rendering -------------------------------------------------------------------------------------------------------


def rendered(template: str, conversation: dict[str, Any], *, opened: bool) -> str | None:
    """What transformers renders; None where the template refuses."""
    tokenizer = PreTrainedTokenizerBase(bos_token=BOS, eos_token=EOS, chat_template=template)
    options = {key: conversation.get(key) for key in ("tools", "documents")} | conversation.get("variables", {})
    try:
        text: str = tokenizer.apply_chat_template(
            conversation["messages"], tokenize=False, add_generation_prompt=opened, **options
        )
    except Exception:  # whatever Jinja's code may raise
        return None
    return text


def both(template: str, conversation: dict[str, Any]) -> dict[str, str] | None:
    """The text, and what opening the answer's turn makes of it."""
    closed, opened = (rendered(template, conversation, opened=opened) for opened in (False, True))
    if closed is None or opened is None:
        return None
    return {"text": closed, **({"adds": opened[len(closed) :]} if opened.startswith(closed) else {"opened": opened})}


def compare(folder: Path) -> int:
    """Prints where pyllm renders real templates otherwise than transformers does; gives the number of such cases."""
    from pyllm.errors import TokenizerError
    from pyllm.tokenizers.chat import render_chat
    from pyllm.tokenizers.gguf import from_metadata

    printable = "".join(map(chr, range(33, 127)))  # in a control token: every character has its stand-in
    pieces = [BOS, EOS, printable, "a"]
    vocabulary = {"model": "llama", "tokens": pieces, "scores": [0.0] * 4, "token_type": [3, 3, 3, 1],
                  "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    same = different = 0
    for path in sorted(folder.glob("*.jinja")):
        template = path.read_text()
        metadata = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
        tokenizer = from_metadata({**metadata, "tokenizer.chat_template": template}, path.name)
        for name, conversation in CONVERSATIONS.items():
            for opened in (False, True):
                there = rendered(template, conversation, opened=opened)
                try:
                    here = render_chat(tokenizer, add_generation_prompt=opened, **conversation)
                except TokenizerError:
                    here = None
                if here == there:
                    same += 1
                elif name != "parts":  # joined for templates that know of none, where transformers fails
                    different += 1
                    print(f"{path.name}, {name!r}:\n  {there!r}\n  {here!r}")
    print(f"{same} renderings are equal, {different} are not")
    return different


def main() -> None:
    """Render and write the file, or compare real templates."""
    parser = argparse.ArgumentParser(description="make the golden chat renderings")
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="of real templates, *.jinja")
    folder = parser.parse_args().compare
    if folder is not None:
        sys.exit(compare(folder) > 0)
    found = {
        name: {which: both(template, conversation) for which, conversation in CONVERSATIONS.items()}
        for name, template in TEMPLATES.items()
    }
    data = {"templates": TEMPLATES, "conversations": CONVERSATIONS, "rendered": found}
    body = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
    (HERE / "templates.json").write_text("{\n" + body + "\n}\n")


if __name__ == "__main__":
    main()
