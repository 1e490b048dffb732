"""The one room that talks to ZooKeeper: session, watches, origin of what was read."""
