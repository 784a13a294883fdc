"""Exec, attach and port-forward over WebSocket by hand: each channel protocol, half-close, resize, exit codes."""

import base64
import json
import os

import websocket
from kubernetes import client, config

config.load_kube_config()
AT = client.Configuration.get_default_copy()
PODS = "/api/v1/namespaces/websocket/pods"


def connect(path, protocols):
    ssl = {"ca_certs": AT.ssl_ca_cert, "certfile": AT.cert_file, "keyfile": AT.key_file}
    return websocket.create_connection(AT.host.replace("https", "wss") + path, sslopt=ssl, subprotocols=protocols, timeout=20)


class Channels:
    def __init__(self, path, protocol):
        self.socket = connect(path, [protocol] if protocol else None)
        assert self.socket.getsubprotocol() == protocol, self.socket.getsubprotocol()
        self.base64 = "base64" in (protocol or "")

    def send(self, channel, data):
        if self.base64:
            self.socket.send(str(channel) + base64.b64encode(data).decode())
        else:
            self.socket.send_binary(bytes([channel]) + data)

    def rest(self):
        """Everything until the connection ends, by channel."""
        found = {}
        while True:
            opcode, message = self.socket.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return found
            if not message:
                continue
            if self.base64:
                assert opcode == websocket.ABNF.OPCODE_TEXT
                channel, data = int(message[:1]), base64.b64decode(message[1:])
            else:
                assert opcode == websocket.ABNF.OPCODE_BINARY
                channel, data = message[0], message[1:]
            found[channel] = found.get(channel, b"") + data


SCRIPT = "command=sh&command=-c&command=echo+o%3B+echo+e+%3E%262%3B+exit+3"
for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", None]:
    found = Channels(f"{PODS}/p/exec?stdout=1&stderr=1&{SCRIPT}", protocol).rest()
    assert found[1] == b"o\n" and found[2] == b"e\n", (protocol, found)
    if protocol and protocol.startswith("v"):
        status = json.loads(found[3])
        assert status["status"] == "Failure" and status["reason"] == "NonZeroExitCode", status
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}], status
    else:
        assert b"exit code 3" in found[3], (protocol, found)

# v5 closes a channel: standard input ends, the outputs go on. 2 MB come back as they went.
data = os.urandom(2_000_000)
for protocol in ["v5.channel.k8s.io"]:
    both = Channels(f"{PODS}/p/exec?stdin=1&stdout=1&stderr=1&command=sh&command=-c&command=sha256sum%3B+echo+after", protocol)
    for start in range(0, len(data), 30_000):
        both.send(0, data[start : start + 30_000])
    both.send(255, b"\x00")
    found = both.rest()
    import hashlib

    assert found[1] == f"{hashlib.sha256(data).hexdigest()}  -\nafter\n".encode(), found
    assert json.loads(found[3])["status"] == "Success", found

# Without it a client says by other means that it has done.
for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"]:
    both = Channels(f"{PODS}/p/exec?stdin=1&stdout=1&command=head&command=-c&command=2000000", protocol)
    for start in range(0, len(data), 30_000):
        both.send(0, data[start : start + 30_000])
    found = both.rest()
    assert found[1] == data, (protocol, len(found[1]))

# The size of a terminal, set before and while the command runs.
for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"]:
    script = "until+stty+size+%7C+grep+-q+33%3B+do+sleep+0.1%3B+done%3B+echo+first%3B+until+stty+size+%7C+grep+-q+44%3B+do+sleep+0.1%3B+done%3B+stty+size"
    terminal = Channels(f"{PODS}/p/exec?stdin=1&stdout=1&tty=1&command=sh&command=-c&command={script}", protocol)
    terminal.send(4, b'{"Width":99,"Height":33}')
    seen = b""
    while b"first" not in seen:
        seen += base64.b64decode(terminal.socket.recv()[1:]) if terminal.base64 else terminal.socket.recv()[1:]
    terminal.send(4, b'{"Width":122,"Height":44}')
    assert b"44 122" in terminal.rest()[1], protocol

# Attach, v4: what is said comes back.
attached = Channels(f"{PODS}/p/attach?stdin=1&stdout=1&stderr=1", "v4.channel.k8s.io")
attached.send(0, b"hello\n")
seen = b""
while b"hello\n" not in seen:
    seen += attached.socket.recv()[1:]
attached.socket.close()

for path, protocols, code in [
    (f"{PODS}/p/exec?command=ls", ["v9.channel.k8s.io"], (400, 403)),
    (f"{PODS}/p/exec?stdout=1", ["v4.channel.k8s.io"], (400,)),
    (f"{PODS}/nobody/exec?command=ls&stdout=1", ["v4.channel.k8s.io"], (404,)),
]:
    try:
        connect(path, protocols)
        raise SystemExit(f"{path} was opened")
    except websocket.WebSocketBadStatusException as error:
        assert error.status_code in code, (path, error)
print("done")
