if __name__ != "styleclip.flows":  # a second name would load every module twice
    raise ImportError("the folder flows/ is the package styleclip.flows: import it by that name")
