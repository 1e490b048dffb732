"""Marathon's znodes become units.

Pure, and in steps, so that a source can keep what never changes:

    read_app(path, data, framework)      one version of an app: the same for ever
    read_instance(path, data)            whose instance it is, and which version of the app it runs
    with_options(app, newest)            a version of an app with the options of its newest one
    app_unit(...), instance_unit(...)    what the loop is told

A znode that makes no sense as a whole is a ModelError. What is wrong with one label, port or task
of it is a `Problem` of the unit, and costs no more than that label, port or task.

Layouts: storage 1.4 to 1.11. Which one a znode has is told by the fields in it and never by a
version: migrations leave old versions of an app as they were.
"""

from minuteman.decode.marathon.app import (
    App,
    AppPort,
    Framework,
    Listener,
    app_unit,
    read_app,
    with_options,
)
from minuteman.decode.marathon.instance import Instance, instance_unit, read_instance
from minuteman.decode.marathon.names import (
    app_of_instance,
    app_unit_id,
    bucket,
    choose_version,
    decode_id,
    encode_id,
    instance_unit_id,
    version_ms,
    version_text,
)
from minuteman.decode.marathon.root import check_storage_version, read_framework_id

__all__ = [
    "App",
    "AppPort",
    "Framework",
    "Instance",
    "Listener",
    "app_of_instance",
    "app_unit",
    "app_unit_id",
    "bucket",
    "check_storage_version",
    "choose_version",
    "decode_id",
    "encode_id",
    "instance_unit",
    "instance_unit_id",
    "read_app",
    "read_framework_id",
    "read_instance",
    "version_ms",
    "version_text",
    "with_options",
]
