"""The mounted tree, each test with a daemon of its own in the foreground.

The modules of `netnsfs/tree` are tested here too, as what one meets in the mount:
`views`, `sysfs`, `interfaces`, `metrics` and `topology` have a file of their name.
Of the others,
- `root`, `directories`: test_session.py
- `namespace`, `refs`, `ctldir`: test_names.py
- `callers`: test_permissions.py, test_kill.py
- `open_files`: test_views.py
- `access`: test_permissions.py
- `kernel_tree`: test_views.py, test_sysfs.py
- `graphviz`: test_topology.py
- `nsid_resolver`: test_interfaces.py
"""
