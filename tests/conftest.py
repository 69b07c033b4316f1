"""The order of the tests: cheap first, so that a simple mistake is seen in seconds."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # stable: files stay in their order
