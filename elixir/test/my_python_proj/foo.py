def bar():
    return "hi from bar"
