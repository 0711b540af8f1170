if __name__ != "styleclip.tasks":  # a second name would load every module twice
    raise ImportError("the folder tasks/ is the package styleclip.tasks: import it by that name")
