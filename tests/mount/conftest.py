"""The mounted tree, each test with a daemon of its own in front.

The room of `netnsfs/tree` too, whose modules are tested as what one meets in the mount:
`views`, `sysfs`, `links`, `metrics` and `topology` have a file of their name. Of the others,
- `root`, `directories`: test_session.py
- `namespace`, `homes`, `corner`: test_names.py
- `callers`: test_permissions.py
- `open_files`: test_views.py
"""
