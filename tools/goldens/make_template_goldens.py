"""Writes tokenizer/testdata/template_goldens.json: what Jinja makes of the
templates and snippets in template_cases.py.

Needed only to regenerate the file; wants jinja2 3.1.6 or newer of 3.1. The
environment is the one that the transformers library sets up for chat
templates, with the clock stopped. Run from the root of the repository:

    python3 tools/goldens/make_template_goldens.py
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

import template_cases

NOW = datetime.datetime(2024, 7, 26, 13, 5, 9, 123456)
OUTPUT = pathlib.Path("tokenizer/testdata/template_goldens.json")


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    """What raise_exception() throws, told apart from Jinja's own errors."""


class Generation(jinja2.ext.Extension):
    """{% generation %}: the body in a call block, its output unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_call")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _call(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Takes no attribute that begins with an underscore."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def raise_exception(message):
    raise RaisedByTemplate(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def make_environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    env.globals["namespace"] = Namespace
    return env


def expect(env, source, context):
    """{"output": ...}, {"raised": message}, {"undefined": message} or
    {"error": kind}."""
    try:
        return {"output": env.from_string(source).render(**context)}
    except RaisedByTemplate as e:
        return {"raised": str(e.message)}
    except jinja2.exceptions.UndefinedError as e:
        return {"undefined": str(e.message)}
    except jinja2.exceptions.TemplateSyntaxError:
        return {"error": "syntax"}
    except Exception as e:  # Whatever Python raises is an error for us too.
        return {"error": type(e).__name__}


def main():
    env = make_environment()
    templates = []
    for name, source, contexts in template_cases.templates():
        runs = []
        for context_name in contexts:
            context = template_cases.CONTEXTS[context_name]
            runs.append({"context": context_name, **expect(env, source, context)})
        templates.append({"name": name, "source": source, "runs": runs})
    snippets = []
    for source in template_cases.snippets():
        snippets.append({"source": source, **expect(env, source, template_cases.SNIPPET_CONTEXT)})
    goldens = {
        "now": NOW.isoformat(),
        "contexts": template_cases.CONTEXTS,
        "snippet_context": template_cases.SNIPPET_CONTEXT,
        "templates": templates,
        "snippets": snippets,
    }
    text = json.dumps(goldens, ensure_ascii=False, indent=1)
    OUTPUT.write_text(text + "\n", encoding="utf-8")
    print(f"{len(templates)} templates, {len(snippets)} snippets")


if __name__ == "__main__":
    main()
