"""A page that shows a dataset as a map of its images: colour, hover, click, lasso, download, search.

>>> from pixvec import dataset, explore
>>> photos = dataset.read("photos.pixvec")                                        # doctest: +SKIP
>>> explore.build(photos, {"UMAP": xy}, {"outlier": scores}, "photos-map").page   # doctest: +SKIP
PosixPath('photos-map/index.html')
>>> with explore.serve(photos, {"UMAP": xy}, {"neighbours": knn}) as explorer:    # doctest: +SKIP
...     print(explorer.url)
...     explorer.wait()
http://127.0.0.1:40123/

projections: an (N, 2) array each, by the name that the page offers it under. columns: an (N,) array each:
texts, booleans and whole numbers are categories, floats are scores; `neighbours`, (N, k), holds rows' nearest
rows. Both may be empty: rows then lie in their order, and neighbours are found by cosine. The page asks no
other machine for anything: what the dataset knows by URL is fetched by `build` and `serve`, never by the
browser. Needs `pip install 'pixvec[explore]'`.
"""

from ._build import Built, build
from ._server import Explorer, serve

__all__ = ("Built", "Explorer", "build", "serve")
