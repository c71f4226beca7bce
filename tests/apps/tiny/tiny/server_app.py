"""Ask every node once; or fail, or idle, when the test wants that."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write `{node name: answer}` to the file that run-config key `result` names."""
    config = context.run_config
    if config["mode"] == "fail":
        raise RuntimeError("the tiny app failed on purpose")
    deadline = time.monotonic() + 300
    if config["mode"] == "idle":
        while time.monotonic() < deadline:
            time.sleep(0.2)
    while len(nodes := list(grid.get_nodes())) < int(config["num-nodes"]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {len(nodes)} nodes came online")
        time.sleep(0.2)
    names = {node.node_id: node.name for node in nodes}
    question = RecordDict({"config": ConfigRecord({"note": str(config["note"])})})
    messages = [Message(question, dst_node_id=node, message_type="query.echo") for node in names]
    pending = set(grid.push_messages(messages))
    answers = {}
    while pending and time.monotonic() < deadline:
        for reply in grid.pull_messages(pending):
            pending.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
            answers[names[reply.metadata.src_node_id]] = dict(reply.content["answer"])
        time.sleep(0.1)
    Path(str(config["result"])).write_text(json.dumps(answers))
