"""Settings of the algorithms, apart from them: what is said of an option needs neither torch nor numpy.

A command line says what it has, a form is drawn, an edit file is read, in a fraction of the second that
importing torch takes. Each module has the name of the one that uses it, which hands the settings on.
"""
