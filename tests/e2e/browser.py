"""Headless Chromium over the DevTools protocol, by pipe: no driver needed.

The protocol: https://chromedevtools.github.io/devtools-protocol/ (JSON messages
that end in NUL; the browser reads descriptor 3 and writes descriptor 4).
"""

import base64
import itertools
import json
import os
import pathlib
import queue
import shutil
import subprocess
import tempfile
import threading
import time

PROGRAMS = ("chromium-headless-shell", "chromium")
TIMEOUT = 60  # Seconds; for what hangs only.
KEYS = {
    "Enter": {"code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Escape": {"code": "Escape", "windowsVirtualKeyCode": 27},
    "Tab": {"code": "Tab", "windowsVirtualKeyCode": 9},
}
SHIFT = 8


class BrowserError(Exception):
    pass


class Browser:
    """One browser process; close() ends it and removes its profile."""

    def __init__(self):
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise BrowserError(f"none of {PROGRAMS} is installed: run tools/setup.sh")
        self._profile = tempfile.mkdtemp(prefix="quire-browser-")
        browser_reads, self._write_fd = os.pipe()
        self._read_fd, browser_writes = os.pipe()
        arguments = [
            program,
            "--headless",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
            "--disable-gpu",
            "--disable-dev-shm-usage",  # Containers give it 64 MB.
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--lang=en",
            "about:blank",
        ]
        if os.geteuid() == 0:
            arguments.insert(1, "--no-sandbox")  # It refuses to start as root otherwise.
        # The shell puts the pipe's ends where the browser looks for them.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{browser_reads} 4>&{browser_writes}', "bash", *arguments],
            pass_fds=(browser_reads, browser_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_reads)
        os.close(browser_writes)
        self._ids = itertools.count(1)
        self._answers = {}
        self._listeners = {}
        self._mu = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        buffer = b""
        while data := os.read(self._read_fd, 1 << 16):
            *messages, buffer = (buffer + data).split(b"\0")
            for message in map(json.loads, messages):
                with self._mu:
                    waiting = self._answers.pop(message.get("id"), None)
                    listener = self._listeners.get(message.get("sessionId"))
                if waiting is not None:
                    waiting.put(message)
                elif listener is not None and "method" in message:
                    listener(message["method"], message["params"])
        with self._mu:
            for waiting in self._answers.values():
                waiting.put({"error": {"message": "the browser has ended"}})
            self._answers.clear()

    def call(self, method, session=None, **params):
        answer = queue.Queue()
        message = {"id": next(self._ids), "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        with self._mu:
            self._answers[message["id"]] = answer
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        try:
            reply = answer.get(timeout=TIMEOUT)
        except queue.Empty:
            raise BrowserError(f"no answer to {method}") from None
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def new_page(self, **kwargs):
        """A page with storage of its own."""
        return Page(self, **kwargs)

    def close(self):
        try:
            self.call("Browser.close")
            self._process.wait(timeout=TIMEOUT)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._write_fd)
            shutil.rmtree(self._profile, ignore_errors=True)


class Page:
    """A tab. Collects what it requested and everything that went wrong in it."""

    def __init__(self, browser, width=1200, height=800, context=None, dark=False):
        self._browser = browser
        self._owns_context = context is None
        self.context = context or browser.call("Target.createBrowserContext")["browserContextId"]
        self.target = browser.call(
            "Target.createTarget", url="about:blank", browserContextId=self.context
        )["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        self.requests = []  # As Network.requestWillBeSent has them.
        self.problems = []  # Exceptions, violations of the policy, console errors.
        with browser._mu:
            browser._listeners[self.session] = self._on_event
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        # A tab in the background gets no animation frames.
        self.call("Page.bringToFront")

    def _on_event(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            # That an answer was 401 or 503 is logged, too; the page handles it.
            if entry["level"] == "error" and entry["source"] != "network":
                self.problems.append(entry["text"])

    def call(self, method, **params):
        return self._browser.call(method, self.session, **params)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def reload(self):
        self.js("window.isOld = true")
        self.call("Page.reload")
        self.wait("document.readyState === 'complete' && !window.isOld")

    def js(self, expression):
        """The value of `expression`, awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {json.dumps(result['exceptionDetails'])}")
        return result["result"].get("value")

    def wait(self, expression):
        """Polls until `expression` is truthy."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                if self.js(f"Boolean({expression})"):
                    return
            except BrowserError:  # Between two documents, for instance.
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, f"not reached: {expression}\n{self.text('body')}\n{self.problems}"
            time.sleep(0.01)

    def text(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector):
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")

    def click(self, selector):
        """With the mouse, on what a user would hit there."""
        quoted = json.dumps(selector)
        self.wait(f"document.querySelector({quoted}) !== null")
        x, y, is_hit = self.js(
            f"""(() => {{
              const element = document.querySelector({quoted});
              element.scrollIntoView({{block: "nearest"}});
              const box = element.getBoundingClientRect();
              const x = box.x + box.width / 2, y = box.y + box.height / 2;
              const hit = document.elementFromPoint(x, y);
              return [x, y, element === hit || element.contains(hit)];
            }})()"""
        )
        assert is_hit, f"{selector} is hidden or covered"
        self.click_at(x, y)

    def click_at(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text):
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def fill(self, selector, text):
        quoted = json.dumps(selector)
        self.js(f"(() => {{ const e = document.querySelector({quoted}); e.focus(); e.select(); }})()")
        assert self.js(f"document.activeElement === document.querySelector({quoted})"), f"{selector} is hidden"
        if text:
            self.type(text)
        else:
            self.js("document.execCommand('delete')")

    def press(self, key, modifiers=0):
        fields = {"key": key, "modifiers": modifiers, **KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields)
        fields.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def allow(self, *permissions):
        self._browser.call("Browser.grantPermissions", browserContextId=self.context, permissions=permissions)

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        with self._browser._mu:
            self._browser._listeners.pop(self.session, None)
        self._browser.call("Target.closeTarget", targetId=self.target)
        if self._owns_context:
            self._browser.call("Target.disposeBrowserContext", browserContextId=self.context)
