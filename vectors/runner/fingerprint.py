"""docs/spec/fingerprint.md: signals, and their digest."""

import hashlib
import hmac
import re

import canonical_json
from request_signing import base64url

CORES, SCREEN, MEMORY = (2, 4, 8, 16, 32), (480, 960, 1440, 1920, 2560), (2, 4, 8, 16, 32, 64, 128)
SYSTEMS = [
    ("win", "windows"),
    *((name, "ios") for name in ("iphone", "ipad", "ipod", "ios")),
    ("mac", "macos"),
    ("android", "android"),
    *((name, "chromeos") for name in ("chrome os", "chromeos", "cros", "chromium os")),
    ("linux", "linux"),
]


def told(value):
    if not isinstance(value, str) or not value:
        return "unknown"
    return value if len(value.encode("utf-16-le", "surrogatepass")) <= 512 else "unknown"


def bucket(value, limits):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        return "unknown"
    return next((f"to {limit}" for limit in limits if value <= limit), f"more than {limits[-1]}")


def system(name):
    if name == "unknown":
        return name
    return next((known for begin, known in SYSTEMS if name.lower().startswith(begin)), "other")


def browser_signals(scope):
    navigator, screen = scope.get("navigator", {}), scope.get("screen", {})
    hinted = told(navigator.get("userAgentData", {}).get("platform"))
    sides = [screen.get("width"), screen.get("height")]
    # Where one side is no number, JavaScript's Math.max answers NaN: then neither is known.
    known = all(isinstance(side, (int, float)) for side in sides)
    return {
        "runtime": "browser",
        "system": system(told(navigator.get("platform")) if hinted == "unknown" else hinted),
        "language": told(navigator.get("language")).lower(),
        "time_zone": told(scope.get("timeZone")),
        "cores": bucket(navigator.get("hardwareConcurrency"), CORES),
        "screen_long": bucket(max(sides) if known else None, SCREEN),
        "screen_short": bucket(min(sides) if known else None, SCREEN),
    }


def node_signals(os):
    model = os["cpus"][0]["model"] if os["cpus"] else None
    return {
        "runtime": "node",
        "system": told(os["platform"]),
        "architecture": told(os["arch"]),
        "processor": told(re.sub(r"\s+", " ", model.strip()) if model is not None else None),
        "cores": bucket(len(os["cpus"]), CORES),
        "memory_gib": bucket(os["totalmem"] / 2**30, MEMORY),
    }


def message(signals, salt_version):
    return b"kg-fingerprint-v1\0" + salt_version.to_bytes(4, "big") + canonical_json.write(signals).encode()


def digest(test):
    salt, version = bytes.fromhex(test["salt"]), test["saltVersion"]
    if len(salt) != 32 or not isinstance(version, int) or not 0 < version < 2**32:
        return None
    text = message(test["signals"], version)
    return text.hex(), base64url(hmac.new(salt, text, hashlib.sha256).digest())


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            if group["type"] == "BrowserSignals":
                yield test, browser_signals(test["scope"]) == test["signals"]
            elif group["type"] == "NodeSignals":
                yield test, node_signals(test["os"]) == test["signals"]
            else:
                yield test, digest(test) == ((test["message"], test["digest"]) if test["result"] == "valid" else None)
