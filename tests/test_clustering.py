"""Clusters: nearest centres by brute force, the same whatever the form of the embeddings, always numbered alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from sklearn.exceptions import ConvergenceWarning

import tessera_xr as txr
from tessera_xr.analysis import blocks, components
from tessera_xr.analysis.clustering import NOISE, Clusters, cluster, fit_clusters, palette
from tessera_xr.embedding.schema import COUNTS, build_embeddings
from tessera_xr.errors import SchemaError, VersionMismatchError
from tessera_xr.grid import geobox_of, with_grid

N_BANDS = 24


def embeddings(values: np.ndarray, box: GeoBox | None = None, **attrs) -> xr.Dataset:
    """Make embeddings of values ([time,] y, x, band)."""
    dims = ("time", "y", "x")[-(values.ndim - 1) :]
    box = box or GeoBox(values.shape[-3:-1], Affine(10, 0, 5e5, 0, -10, 56e5), "EPSG:32631")
    like = with_grid(xr.Dataset({"a": (("y", "x"), np.zeros(box.shape))}), box)
    variables = {name: xr.DataArray(np.ones(values.shape[:-1], np.uint16), dims=dims) for name in COUNTS}
    variables["embeddings"] = xr.DataArray(values.astype(np.float32), dims=(*dims, "band"))
    if "time" in dims:
        variables = {n: a.assign_coords(time=2019 + np.arange(len(values))) for n, a in variables.items()}
    return build_embeddings(variables, like, {"model": "m", "weights_sha256": "a", "source": "test", **attrs})


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Four kinds of pixel, the first the commonest; 0 is no data."""
    kinds = np.random.default_rng(1).choice([1, 2, 3, 4], size=(2, 21, 30), p=[0.5, 0.25, 0.15, 0.1])
    kinds[0, 0, :5] = 0
    return kinds


@pytest.fixture(scope="module")
def emb(truth) -> xr.Dataset:
    rng = np.random.default_rng(0)
    places = np.concatenate([np.full((1, N_BANDS), np.nan), 3 * rng.normal(size=(4, N_BANDS))])
    return embeddings(places[truth] + rng.normal(scale=0.8, size=(*truth.shape, N_BANDS)))


@pytest.fixture(scope="module")
def eight(emb) -> Clusters:
    """More clusters than kinds, so that many pixels lie near a border."""
    return fit_clusters(emb, 8)


def flat(emb: xr.Dataset) -> np.ndarray:
    return txr.dequantize(emb).embeddings.transpose(..., "band").values.astype(np.float64)


def distances(emb: xr.Dataset, clusters: Clusters) -> np.ndarray:
    """Return the distance of every pixel to every prototype, by brute force in float64."""
    away = flat(emb)[..., None, :] - clusters.prototypes.values.astype(np.float64)
    return np.sqrt((away**2).sum(axis=-1))


def test_it_finds_the_kinds_and_numbers_them_by_size(emb, truth):
    found = fit_clusters(emb, 4)
    xr.testing.assert_equal(cluster(emb, 4), found.predict(emb))
    np.testing.assert_array_equal(found.predict(emb), truth)
    sizes = np.bincount(truth[truth > 0])[1:]
    np.testing.assert_allclose(found.share, sizes / sizes.sum())
    for i in range(4):
        np.testing.assert_allclose(found.centres[i], flat(emb)[truth == i + 1].mean(axis=0), atol=1e-4)


def test_they_say_how_large_they_are(emb, eight):
    shares = ", ".join(f"{share:.0%}" for share in eight.share.values)
    assert repr(eight).startswith(f"Clusters: 8, holding {shares} of the sample; model ")
    dense = replace(eight, reach=xr.ones_like(eight.reach), share=eight.share * 0.9)
    assert "of the sample, noise 10%; model" in repr(dense)


def test_prediction_is_the_nearest_centre(emb, eight):
    away = distances(emb, eight)
    expected = np.where(np.isnan(away[..., 0]), 0, 1 + np.nan_to_num(away).argmin(axis=-1))
    labels = eight.predict(emb)
    np.testing.assert_array_equal(labels, expected)
    assert (expected == 0).sum() == 5
    assert len(np.unique(expected)) == 9
    distance = eight._assign(emb)[1]
    np.testing.assert_allclose(distance, away.min(axis=-1) ** 2, rtol=1e-4, atol=1e-3)


def test_the_map_is_labelled(emb, eight):
    labels = eight.predict(emb)
    assert labels.dims == ("time", "y", "x")
    assert labels.dtype == labels.flag_values.dtype == np.uint8
    assert labels.flag_values.tolist() == list(range(1, 9))
    assert labels.flag_meanings.split() == [f"cluster_{i}" for i in range(1, 9)]
    assert tuple(labels.flag_colors.split()) == eight.colours == palette(8)
    assert labels.nodata == 0
    assert geobox_of(labels) == geobox_of(emb)
    assert labels.grid_mapping == "spatial_ref"
    assert (labels.attrs["model"], labels.attrs["source"]) == ("m", "test")
    xr.testing.assert_equal(labels.time, emb.time)
    assert eight.predict(emb.isel(time=0)).dims == ("y", "x")


def test_int8_differs_only_where_two_centres_are_as_near(emb, eight):
    codes = emb.tessera.quantize()
    labels, expected = eight.predict(codes), eight.predict(emb)
    rounding = np.nan_to_num(codes.scales.values) / 2 * np.sqrt(N_BANDS)  # the most that a pixel moved
    nearest = np.sort(distances(emb, eight), axis=-1)
    sure = nearest[..., 1] - nearest[..., 0] > 2 * rounding
    assert sure.sum() > 600
    np.testing.assert_array_equal(labels.values[sure], expected.values[sure])
    np.testing.assert_array_equal(labels == 0, expected == 0)
    xr.testing.assert_equal(labels, eight.predict(codes.tessera.dequantize()))
    codes["scales"][1, 3, 3] = np.inf
    assert eight.predict(codes)[1, 3, 3] == 0


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_dask_gives_the_same_in_any_chunks(emb, eight, form):
    emb = emb if form == "float32" else emb.tessera.quantize()
    expected = eight.predict(emb)
    for chunks in ({"y": 5, "x": 7}, {"time": 1, "band": 10}, {"x": 11}):
        lazy = eight.predict(emb.chunk(chunks))
        assert lazy.chunks is not None
        xr.testing.assert_identical(lazy.compute(), expected)
    xr.testing.assert_equal(fit_clusters(emb.chunk(y=5), 8).centres, fit_clusters(emb, 8).centres)
    table, lazy_table = eight.describe(emb), eight.describe(emb.chunk(y=5, x=7))
    assert table.equals(lazy_table)


def test_any_order_in_memory_gives_the_same(emb, eight, monkeypatch):
    expected = eight.predict(emb)
    xr.testing.assert_equal(eight.predict(emb.isel(x=slice(3, 17, 2))), expected.isel(x=slice(3, 17, 2)))
    xr.testing.assert_equal(eight.predict(emb.isel(y=slice(None, None, -1))), expected.isel(y=slice(None, None, -1)))
    assert eight.predict(emb.isel(time=1, y=2, x=3)) == expected[1, 2, 3]
    monkeypatch.setattr(blocks, "STRETCH", 100)  # the last stretch is shorter
    xr.testing.assert_equal(eight.predict(emb), expected)
    first = emb.embeddings.copy(data=np.ascontiguousarray(emb.embeddings.values))  # band first
    xr.testing.assert_equal(eight.predict(emb.assign(embeddings=first)), expected)


def test_permuted_pixels_get_permuted_answers(emb, eight):
    order = np.random.default_rng(3).permutation(emb.sizes["y"])
    moved = emb.assign(embeddings=emb.embeddings.copy(data=emb.embeddings.values[:, :, order]))
    np.testing.assert_array_equal(eight.predict(moved), eight.predict(emb).values[:, order])


def test_one_fit_serves_other_years(emb, truth):
    found = fit_clusters(emb.sel(time=2019), 4)
    np.testing.assert_array_equal(found.predict(emb.sel(time=2020)), truth[1])


def test_numbers_and_colours_are_stable(emb, eight):
    sizes = eight.share.values
    assert (np.diff(sizes) <= 0).all()
    again = fit_clusters(emb, 8)
    xr.testing.assert_identical(again.centres, eight.centres)
    centres = [fit_clusters(emb, 4, seed=seed).centres for seed in (0, 1, 2)]
    for other in centres[1:]:
        np.testing.assert_allclose(other, centres[0], atol=1e-3)
    assert len(set(palette(60))) == 60
    assert palette(60)[:8] == palette(8)


def test_equal_sizes_are_numbered_along_the_first_component():
    values = np.zeros((2, 12, N_BANDS))
    places = np.array([4.0, -9.0, 1.0])  # thirds of the map, along one direction
    values[..., 2] = np.repeat(places, 4)
    values += np.random.default_rng(0).normal(scale=0.01, size=values.shape)
    for seed in range(3):
        found = fit_clusters(embeddings(values), 3, seed=seed)
        np.testing.assert_allclose(found.centres[:, 2], [-9, 1, 4], atol=0.1)


def test_the_sample_is_seeded(emb):
    first, again, other = (fit_clusters(emb, 4, sample=90, seed=s).centres for s in (0, 0, 1))
    xr.testing.assert_identical(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - fit_clusters(emb, 4).centres).max() < 1


def test_the_clusterer_is_seeded_unless_it_has_a_seed_of_its_own(emb, eight):
    from sklearn.cluster import KMeans

    def differ(method, **options) -> bool:  # of all pixels, so that only the clusterer draws
        first, other = (fit_clusters(emb, 8, method=method, seed=seed, **options).centres for seed in (0, 1))
        return bool(np.abs(first - other).max() > 1e-3)

    assert differ("kmeans")
    assert differ(KMeans(init="random", n_init=1))
    assert not differ(KMeans(init="random", n_init=1, random_state=5))


def test_describe(emb, eight):
    table = eight.describe(emb)
    labels, away = eight.predict(emb).values, distances(emb, eight)
    assert table.index.tolist() == list(range(1, 9))
    np.testing.assert_array_equal(table.pixels, np.bincount(labels.ravel())[1:])
    np.testing.assert_allclose(table.share.sum(), 1)
    assert tuple(table.colour) == eight.colours
    for number, row in table.iterrows():
        mine = away[..., number - 1][labels == number]
        assert row.spread == pytest.approx(np.sqrt((mine**2).mean()), rel=1e-4)
        at = emb.sel(y=row.y, x=row.x, time=row.time)
        assert eight.predict(at) == number
        assert distances(at, eight)[number - 1] == pytest.approx(mine.min(), rel=1e-4)
        pixel = emb.tessera.sample((row.lon, row.lat))
        assert (pixel.x.item(), pixel.y.item()) == (row.x, row.y)


def test_describe_a_map_without_some_clusters(emb, truth):
    found = fit_clusters(emb, 4)
    values = emb.embeddings.where(only(truth, 1, 2)).transpose(*emb.embeddings.dims)
    table = found.describe(emb.assign(embeddings=values))
    assert table.pixels[[3, 4]].tolist() == [0, 0]
    assert table.loc[[3, 4], ["x", "y", "lon", "lat", "time", "spread"]].isna().all(axis=None)
    assert table.share.sum() == pytest.approx(1)


def only(truth: np.ndarray, *kinds: int) -> xr.DataArray:
    return xr.DataArray(np.isin(truth, kinds), dims=("time", "y", "x"))


@pytest.mark.parametrize("criterion", ["elbow", "silhouette"])
def test_the_number_is_chosen(emb, truth, criterion):
    found = fit_clusters(emb, "auto", candidates=range(2, 9), criterion=criterion)
    assert len(found) == 4
    assert found.scores.index.tolist() == list(range(2, 9))
    assert (np.diff(found.scores.inertia) < 0).all()
    assert found.scores.silhouette.idxmax() == 4
    inertia = (distances(emb, found)[truth > 0].min(axis=-1) ** 2).sum()
    assert found.scores.inertia[4] == pytest.approx(inertia, rel=1e-4)
    assert fit_clusters(emb, 4).scores is None


def test_any_clusterer_will_do(emb, truth):
    from sklearn.cluster import AgglomerativeClustering, MiniBatchKMeans
    from sklearn.mixture import GaussianMixture

    for method in (AgglomerativeClustering(), MiniBatchKMeans(n_init=3), GaussianMixture(reg_covar=0.1)):
        found = fit_clusters(emb, 4, method=method)
        np.testing.assert_array_equal(found.predict(emb), truth)
        assert not found.has_noise
    assert len(fit_clusters(emb, method=AgglomerativeClustering(3))) == 3, "its own number, if no other is asked for"
    assert method.random_state is None, "the user's object is left as it is"


def test_prototypes_follow_a_curved_cluster():
    """A ring around a spot: no two centres could tell them apart."""
    from sklearn.cluster import DBSCAN

    rng = np.random.default_rng(0)
    angle, truth = rng.uniform(0, 2 * np.pi, 900), np.repeat([1, 2], [600, 300])
    radius = np.where(truth == 1, 5.0, 0.5)
    values = np.zeros((900, N_BANDS))
    values[:, 0], values[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
    emb = embeddings(values.reshape(30, 30, N_BANDS))
    found = fit_clusters(emb, method=DBSCAN(eps=1.0, min_samples=3))
    assert len(found) == 2
    labels = found.predict(emb).values.ravel()
    assert (labels[labels != NOISE] == truth[labels != NOISE]).all()
    assert (labels == NOISE).mean() < 0.07, "a twentieth lies outside the reach of its own cluster"


def test_density_clusters_know_noise(emb, truth):
    rng = np.random.default_rng(5)
    stray = rng.random(truth.shape) < 0.05
    values = np.where(stray[..., None], rng.normal(scale=8, size=(*truth.shape, N_BANDS)), flat(emb))
    noisy = embeddings(values)
    found = fit_clusters(noisy, method="hdbscan")
    assert len(found) == 4
    assert found.has_noise
    labels = found.predict(noisy)
    assert labels.flag_values.tolist() == [1, 2, 3, 4, NOISE]
    assert labels.flag_meanings.split()[-1] == "noise"
    assert len(labels.flag_colors.split()) == 5
    assert (labels.values[stray] == NOISE).all()
    usual = ~stray & (truth > 0)
    assert (labels.values[usual] == truth[usual]).mean() > 0.93
    assert set(np.unique(labels.values[usual & (labels.values != truth)])) == {NOISE}
    away = distances(noisy, found)
    expected = away.min(axis=-1) > found.reach.values[np.nan_to_num(away).argmin(axis=-1)]
    np.testing.assert_array_equal(labels == NOISE, expected)
    table = found.describe(noisy)
    assert table.pixels[NOISE] == (labels == NOISE).sum()
    assert np.isnan(table.loc[NOISE, ["x", "spread"]].astype(float)).all()
    assert table.share.sum() == pytest.approx(1)


def test_the_reach_of_a_cluster_is_its_own():
    """The smaller cluster comes first to the clusterer, and is the wider."""
    from sklearn.cluster import DBSCAN

    rng = np.random.default_rng(0)
    wide = np.arange(900) < 300
    values = np.zeros((900, N_BANDS))
    values[:, :2] = rng.uniform(-1, 1, (900, 2)) * np.where(wide, 2, 0.2)[:, None]
    values[wide, 0] += 20
    values[899] = 50  # so that the clustering knows noise
    found = fit_clusters(embeddings(values.reshape(30, 30, N_BANDS)), method=DBSCAN(eps=1, min_samples=3))
    reach = found.reach.groupby("cluster").max()
    assert float(reach[0]) < float(reach[1]) / 4
    np.testing.assert_allclose(found.share, [599 / 900, 300 / 900])


def test_fewer_kinds_than_clusters_give_as_many_as_there_are():
    values = np.random.default_rng(0).normal(size=(3, N_BANDS))[np.arange(48) % 3].reshape(6, 8, N_BANDS)
    with pytest.warns(ConvergenceWarning, match="distinct clusters"):
        found = fit_clusters(embeddings(values), 5)
    assert len(found) == 3
    assert len(np.unique(found.predict(embeddings(values)))) == 3


def test_faults(emb, eight):
    from sklearn.cluster import DBSCAN

    for n in (0, 251):
        with pytest.raises(SchemaError, match=f"n_clusters must be from 1 to 250 .* not {n}"):
            fit_clusters(emb, n)
    with pytest.raises(SchemaError, match=r"2 at least to choose from\), not 1"):
        fit_clusters(emb, "auto", candidates=[1, 2, 3])
    with pytest.raises(SchemaError, match="n_clusters='many' is unknown; give a whole number or 'auto'"):
        fit_clusters(emb, "many")
    with pytest.raises(SchemaError, match="6 pixels have data: too few for 7 clusters"):
        fit_clusters(emb.isel(time=[1], y=[1, 2], x=[0, 1, 2]), 7)
    with pytest.raises(SchemaError, match="0 pixels have data"):
        fit_clusters(emb.isel(time=[0], y=[0], x=slice(3)))
    with pytest.raises(SchemaError, match="method='kmean' is unknown; choose 'kmeans', 'hdbscan'"):
        fit_clusters(emb, method="kmean")
    with pytest.raises(SchemaError, match="is unknown; choose 'kmeans'"):
        fit_clusters(emb, method=DBSCAN)
    for method in ("hdbscan", DBSCAN()):
        with pytest.raises(SchemaError, match="finds the number of clusters itself; leave out n_clusters"):
            fit_clusters(emb, 5, method=method)
    with pytest.raises(SchemaError, match="DBSCAN found 0 clusters in 1255 pixels"):
        fit_clusters(emb, method=DBSCAN(eps=1e-3))
    with pytest.raises(SchemaError, match="criterion='best' is unknown"):
        fit_clusters(emb, "auto", criterion="best")
    with pytest.raises(SchemaError, match=r"candidates=\[2, 3\] are too few"):
        fit_clusters(emb, "auto", candidates=[2, 3])
    with pytest.raises(SchemaError, match="sample must be a positive number of pixels, not -1"):
        fit_clusters(emb, sample=-1)
    with pytest.raises(SchemaError, match="needs embeddings"):
        eight.predict(emb.drop_vars("embeddings"))


def test_models_are_not_mixed(emb, eight):
    for wrong in (emb.assign_attrs(model="other"), emb.assign_attrs(weights_sha256="b"), emb.isel(band=slice(8))):
        for use in (eight.predict, eight.describe):
            with pytest.raises(VersionMismatchError):
                use(wrong)


def test_caldor_clusters_follow_the_fire(shared_data):
    """The real embeddings of 2022: one cluster or more lies nearly all in what Hansen saw lost in 2021."""
    emb, loss = caldor(shared_data)
    labels = fit_clusters(emb.sel(time=2022), 6).predict(emb)
    after, before = (labels.sel(time=year).values for year in (2022, 2020))
    assert set(np.unique(after)) == {1, 2, 3, 4, 5, 6}
    share = np.array([loss[after == i].mean() for i in range(1, 7)])
    assert share.max() > 0.6
    assert share.min() < 0.1
    burnt = 1 + np.flatnonzero(share > 0.5)
    assert np.isin(before, burnt).mean() < 0.5 * np.isin(after, burnt).mean()


def caldor(shared_data) -> tuple[xr.Dataset, np.ndarray]:
    """Return the published embeddings and where Hansen saw loss in 2021, nearest pixel."""
    from pyproj import Transformer

    data = np.load(shared_data / "caldor" / "caldor_64.npz")
    hansen = np.load(shared_data / "caldor" / "caldor_64_hansen.npz")
    box = GeoBox((64, 64), Affine(*data["transform"]), "EPSG:32610")
    emb = embeddings(data["embeddings"].astype(np.float32), box, model="v1.1")
    emb = emb.assign(embeddings=emb.embeddings.copy(data=data["embeddings"].transpose(0, 3, 1, 2)))
    emb = emb.assign(scales=(("time", "y", "x"), data["scales"])).assign_coords(time=data["years"])
    x, y = np.meshgrid(emb.x, emb.y)
    lon, lat = Transformer.from_crs("EPSG:32610", "EPSG:4326", always_xy=True).transform(x, y)
    column, row = ((lon - hansen["west"]) / hansen["res"]), ((hansen["north"] - lat) / hansen["res"])
    return emb, hansen["lossyear"][row.astype(int), column.astype(int)] == 21


def test_a_large_map_is_not_held_as_floats(monkeypatch):
    """An int8 map that numpy would blow up fourfold: the most held besides is under 40 % of its codes."""
    import tracemalloc

    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (1, 400, 500, 128)).astype(np.int8)
    emb = embeddings(np.zeros((1, 400, 500, 1)))
    emb = emb.drop_vars(["embeddings", "band"]).assign(
        embeddings=(("time", "band", "y", "x"), codes.transpose(0, 3, 1, 2)),
        scales=(("time", "y", "x"), rng.random((1, 400, 500)).astype(np.float32)),
    )
    monkeypatch.setattr(components, "FIT_PIXELS", 2000)  # what a fit takes doesn't grow with the map
    fit_clusters(emb, 3, sample=500).describe(emb)  # compiled, imported
    txr.fit_components(emb).transform(emb.isel(y=slice(2)))
    tracemalloc.start()
    found = fit_clusters(emb, 5, sample=2000)
    found.describe(emb)
    found.predict(emb.isel(x=slice(3, 490)))
    txr.fit_components(emb).transform(emb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * codes.nbytes
