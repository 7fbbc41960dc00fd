"""What `numba-adam climb` draws: plain gradient descent and Adam walk down one valley, and Adam's two compasses.

    valleys.py   the valleys that have a name, as functions of a place
    walks.py     the two walks; Adam is `numba_adam.Adam`, and each step leaves a reading of its compasses
    sheet.py     where things are drawn: inches of the page, and the places of the valley in them
    themes.py    the colours, for light and for dark pages
    ground.py    the valley seen from above, and the walks on it
    dials.py     one compass at one step: needle, ellipse, and how much of it the bias correction adds
    picture.py   the picture: the map, the compasses at every step, the first steps enlarged; start reading here
    movie.py     the same as a film, a frame for each step

Imports the library. matplotlib (the extra `demo`) is imported inside the functions that draw. Opens no window.
"""
