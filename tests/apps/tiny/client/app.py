"""Echo what the node was told and what it was configured with."""

import os

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("echo")
def echo(message: Message, context: Context) -> Message:
    """Return the note of the message and the node's own `data` setting."""
    note = message.content["config"]["note"]
    answer = {"note": note, "data": str(context.node_config.get("data", "")), "pid": os.getpid()}
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)
