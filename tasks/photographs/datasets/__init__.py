"""Data sets as people have them: what lies at a place, listed as samples, one for every image.

Every form becomes the same thing, a sorted list of samples below one prefix, so that whatever comes after
it indexes, cuts, resumes and retries all of them alike:

    a prefix, a glob, one image     an object for each image
    a list (CSV, JSONL, Parquet)    an object for each row; its other columns travel
    WebDataset tar shards           a stretch of bytes of an archive; text and JSON beside it travel
    Parquet with bytes              a cell; the other columns travel

``front`` finds out which it is and opens it; ``places`` says where the bytes of a sample lie.
"""
