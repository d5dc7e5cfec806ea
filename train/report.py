"""report.html"""


def write_report(run):
    pass
