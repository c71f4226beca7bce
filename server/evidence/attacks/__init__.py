"""Membership attacks: can a model's answers tell examples that it was trained on from others?

Each is a short file of numbers in, one signal an example out, higher for members; `success` says
how well a signal tells them apart. None needs a person's data to leave where they are: whoever has
the examples measures, and only the success is sent.

And inversion attacks, that make inputs: of a class from a model (`class_inversion`), of an upload
(`gradient_inversion`). How near they come is told beside other real images (`nearness`).
"""
