"""Heads: from labels to a map, the same whichever way the map is held, and refused where it can't be right."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tessera_xr import tutorial
from tessera_xr.embedding.quantize import dequantize
from tessera_xr.embedding.schema import provenance
from tessera_xr.errors import GridError, SchemaError, TesseraWarning, VersionMismatchError
from tessera_xr.learning import heads, prediction
from tessera_xr.learning.heads import fit_head, fit_sample
from tessera_xr.learning.labels import LabelSet
from tessera_xr.learning.prediction import predict
from tessera_xr.learning.samples import LabelSample

NAMED = ["logistic", "knn", "forest", "gradient_boosting", "mlp"]
QUICK = {"forest": {"n_estimators": 20}, "gradient_boosting": {"max_iter": 10}, "mlp": {"max_epochs": 8}}


@pytest.fixture(scope="module")
def emb() -> xr.Dataset:
    """Real embeddings with a hole in them."""
    found = tutorial.embeddings().sel(time=2022).isel(y=slice(8, 40), x=slice(10, 50))
    return found.assign(scales=found.scales.where((found.x - found.x[3]) ** 2 + (found.y - found.y[5]) ** 2 > 30**2))


@pytest.fixture(scope="module")
def hole(emb) -> np.ndarray:
    return emb.scales.isnull().values


@pytest.fixture(scope="module")
def truth(emb) -> xr.DataArray:
    found = (tutorial.labels().lossyear == 21).sel(y=emb.y, x=emb.x)
    return found.astype(np.uint8) + 1


@pytest.fixture(scope="module")
def sample(emb, truth) -> LabelSample:
    full = emb.assign(scales=tutorial.embeddings().scales.sel(time=2022, y=emb.y, x=emb.x))
    names = {1: "still there", 2: "lost"}
    return LabelSet.from_raster(truth, names=names, shapes="points", n_per_class=60).sample(full)


@pytest.fixture(scope="module")
def numbers(emb, sample) -> LabelSample:
    cover = tutorial.labels().treecover2000.sel(y=emb.y, x=emb.x).values.astype(float)
    return LabelSample(
        sample.X, cover[sample.rows, sample.columns], sample.groups, sample.weights, sample.x_map, sample.y_map,
        sample.rows, sample.columns, {}, "tree cover", sample.attrs, sample.crs, sample.shape,
    )  # fmt: skip


def pixels(emb: xr.Dataset) -> np.ndarray:
    return dequantize(emb).embeddings.transpose("y", "x", "band").values


# A map is what the rows say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*NAMED, LinearSVC(), make_pipeline(StandardScaler(), LogisticRegression())])
def test_a_map_holds_what_the_head_says_of_each_pixel(emb, sample, hole, model):
    head = fit_head(emb, sample, model, **QUICK.get(model if isinstance(model, str) else "", {}))
    found = head.predict(emb)
    codes = found.prediction.values
    assert (codes[hole] == 0).all()
    assert set(np.unique(codes[~hole])) == {1, 2}
    rows = pixels(emb)[~hole]
    np.testing.assert_array_equal(np.array(head.classes)[codes[~hole] - 1], head.predict_rows(rows))
    if not head.has_probability:
        assert list(found) == ["prediction"]
        return
    shares = found.probability.transpose("y", "x", "class").values
    np.testing.assert_allclose(shares[~hole], head.probability_rows(rows), atol=2e-5)
    np.testing.assert_allclose(found.confidence.values, shares.max(axis=-1))
    np.testing.assert_allclose(shares[~hole].sum(axis=-1), 1, rtol=1e-5)
    assert np.isnan(shares[hole]).all()
    assert np.isnan(found.confidence.values[hole]).all()


@pytest.mark.parametrize("model", NAMED)
def test_a_map_is_the_same_however_it_is_held(emb, sample, model):
    head = fit_sample(sample, model, **QUICK.get(model, {}))
    found = head.predict(emb)
    held = {
        "Dask": emb.chunk(y=7, x=13),
        "Dask, chunked along band": emb.chunk(band=50, y=16),
        "float": dequantize(emb),
        "another order": emb.transpose("x", "y", "band"),
        "cut and joined": xr.concat([emb.isel(x=slice(9)), emb.isel(x=slice(9, None))], dim="x", join="exact"),
    }
    for name, other in held.items():
        again = predict(other, head)
        for variable in found:
            np.testing.assert_allclose(
                again[variable].transpose(*found[variable].dims),
                found[variable],
                atol=1e-5,
                err_msg=f"{name} {variable}",
            )


def test_the_map_says_what_its_codes_mean_and_where_it_is(emb, sample):
    found = fit_sample(sample, "logistic").predict(emb)
    assert found.prediction.dtype == np.uint8
    attrs = found.prediction.attrs
    np.testing.assert_array_equal(attrs["flag_values"], [1, 2])
    assert attrs["flag_meanings"].split() == ["still_there", "lost"]
    assert attrs["flag_colors"].split() == list(sample.classes.values())
    assert attrs["nodata"] == 0
    assert found["class"].values.tolist() == ["still there", "lost"]
    for name in found:
        assert found[name].odc.crs == emb.odc.crs
        assert found[name].attrs["model"] == emb.attrs["model"]
    assert found.attrs == provenance(emb) | {"head": "logistic"}
    assert found.probability.dims == ("class", "y", "x")


def test_the_map_says_what_it_is_and_becomes_a_geotiff(emb, sample, tmp_path):
    import rasterio

    found = fit_sample(sample, "logistic").predict(emb)
    said = repr(found.tessera)
    share = float((found.prediction == 2).sum() / (found.prediction > 0).sum())
    assert f"lost         {share:.1%}" in said
    assert "predicted class (logistic)" in said
    with rasterio.open(found.tessera.to_geotiff(tmp_path / "map.tif")) as file:
        np.testing.assert_array_equal(file.read(1), found.prediction)
        assert file.nodata == 0
        assert file.tags(1)["flag_meanings"] == "still_there lost"


def test_probability_can_be_left_out(emb, sample):
    head = fit_sample(sample, "logistic")
    found, full = head.predict(emb, probability=False), head.predict(emb)
    assert list(found) == ["prediction", "confidence"]
    xr.testing.assert_identical(found, full.drop_vars("probability").drop_vars("class"))


def test_a_series_is_predicted_year_by_year(emb, sample):
    years = tutorial.embeddings().sel(time=[2020, 2022], y=emb.y, x=emb.x)
    head = fit_sample(sample, "logistic")
    both = head.predict(years)
    assert both.prediction.dims == ("time", "y", "x")
    assert both.probability.dims == ("time", "class", "y", "x")
    for year in (2020, 2022):
        xr.testing.assert_equal(head.predict(years, time=year), both.sel(time=year))
    assert float((both.prediction.sel(time=2020) == 2).mean()) < 0.5 * float(
        (both.prediction.sel(time=2022) == 2).mean()
    )


def test_lazy_maps_stay_lazy_and_small(emb, sample):
    lazy = fit_sample(sample, "logistic").predict(emb.chunk(y=16))
    assert all(lazy[name].chunks is not None for name in lazy)


def test_a_large_map_goes_by_stretches(emb, sample):
    """More pixels than one stretch, and with a threaded and an unthreaded estimator."""
    wide = xr.concat([emb] * 20, dim="x").assign_coords(x=np.arange(20 * emb.sizes["x"]))
    for model in ("logistic", LinearSVC()):
        head = fit_sample(sample, model)
        once = head.predict(emb).prediction.values
        np.testing.assert_array_equal(head.predict(wide).prediction.values, np.tile(once, (1, 20)))


# Linear heads take a short way ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_the_short_way_of_linear_heads_is_exact(sample, n_classes):
    rng = np.random.default_rng(n_classes)
    names = np.array([f"c{i}" for i in range(n_classes)])
    y = names[(sample.X[:, :n_classes] + rng.normal(size=(len(sample), n_classes))).argmax(axis=1)]
    labelled = LabelSample(
        sample.X, y, sample.groups, sample.weights, sample.x_map, sample.y_map, sample.rows, sample.columns,
        dict.fromkeys(names, "#000000"), None, sample.attrs, sample.crs, sample.shape,
    )  # fmt: skip
    head = fit_sample(labelled, "logistic")
    outs = prediction.predict_block(sample.X, head=head, n_outputs=3, lazy=False)
    np.testing.assert_allclose(outs[2], head.probability_rows(sample.X), atol=2e-6)
    np.testing.assert_array_equal(names[outs[0] - 1], head.predict_rows(sample.X))


@pytest.mark.parametrize("model", ["ridge", LinearRegression()])
def test_the_short_way_of_linear_numbers_is_exact(numbers, model):
    head = fit_sample(numbers, model)
    assert prediction.linear_map(head) is not None
    found = prediction.predict_block(numbers.X, head=head, n_outputs=1, lazy=False)
    np.testing.assert_allclose(found, head.predict_rows(numbers.X), rtol=1e-4, atol=1e-3)


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["ridge", "knn", "forest", "gradient_boosting", "mlp"])
def test_numbers_come_with_an_interval(emb, numbers, hole, model):
    head = fit_head(emb, numbers, model, **QUICK.get(model, {}))
    found = head.predict(emb)
    assert list(found) == ["prediction", "lower", "upper"]
    np.testing.assert_allclose(
        found.prediction.values[~hole], head.predict_rows(pixels(emb)[~hole]), rtol=1e-4, atol=1e-2
    )
    assert np.isnan(found.prediction.values[hole]).all()
    wide = float((found.upper - found.lower).mean())
    narrow = head.predict(emb, interval=0.5)
    assert 0 < float((narrow.upper - narrow.lower).mean()) < wide
    np.testing.assert_allclose((found.lower + found.upper) / 2, found.prediction, rtol=1e-4, atol=1e-3)
    cover = tutorial.labels().treecover2000.sel(y=emb.y, x=emb.x)
    if model != "mlp":  # hardly trained here
        inside = ((cover >= found.lower) & (cover <= found.upper)).values[~hole].mean()
        assert 0.8 < inside <= 1


def test_the_interval_is_that_of_errors_at_labels_held_out(numbers):
    head = fit_head(None, numbers, "ridge")
    assert len(head.residuals) == len(numbers)
    assert (np.diff(head.residuals) >= 0).all()
    fitted = np.abs(head.predict_rows(numbers.X) - numbers.y)
    assert np.median(head.residuals) > np.median(fitted)
    half = prediction.half_width(head.residuals, 0.9)
    assert (head.residuals <= half).sum() >= 0.9 * (len(numbers) + 1)
    with pytest.warns(
        TesseraWarning, match=r"120 labelled pixels are too few for an interval of 0\.999: ask for one of 99\.1 %"
    ):
        assert prediction.half_width(head.residuals, 0.999) is None


def test_targets_of_one_label_have_no_interval(emb, numbers):
    one = numbers.take(np.arange(30))
    one = LabelSample(
        one.X, one.y, 0 * one.groups, one.weights, one.x_map, one.y_map, one.rows, one.columns, {}, "tree cover",
        one.attrs, one.crs, one.shape,
    )  # fmt: skip
    with pytest.warns(TesseraWarning, match="all targets are of one label"):
        head = fit_head(emb, one, "ridge")
    assert list(head.predict(emb)) == ["prediction"]


# Fitting --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["forest", "mlp"])
def test_a_seed_decides_what_is_drawn(emb, sample, model):
    one, same, other = (fit_sample(sample, model, seed=s, **QUICK[model]).predict(emb).probability for s in (1, 1, 2))
    xr.testing.assert_identical(one, same)
    assert not one.equals(other)


def test_seeds_reach_into_pipelines(sample):
    model = make_pipeline(PCA(svd_solver="randomized", n_components=5), LogisticRegression())
    head = fit_sample(sample, model, seed=7)
    assert head.estimator.get_params()["pca__random_state"] == 7
    assert model.get_params()["pca__random_state"] is None  # a clone was fitted
    assert fit_sample(sample, model, pca__random_state=3).estimator.get_params()["pca__random_state"] == 3


def test_classes_count_alike_however_many_pixels_they_have(sample):
    few = np.concatenate([np.flatnonzero(sample.y == "lost")[:6], np.flatnonzero(sample.y != "lost")])
    skewed = sample.take(few)
    weights = heads.pixel_weights(skewed, skewed.class_codes(), "balanced")
    assert weights.mean() == pytest.approx(1)
    assert weights[:6].sum() == pytest.approx(weights[6:].sum())
    doubted = changed(skewed, weights=np.where(np.arange(len(skewed)) < 3, 0.2, 1.0))
    weights = heads.pixel_weights(doubted, doubted.class_codes(), "balanced")
    assert weights[:6].sum() == pytest.approx(weights[6:].sum())
    balanced, plain = (fit_sample(skewed, "logistic", class_weight=w) for w in ("auto", None))
    said = [(head.predict_rows(sample.X) == "lost").mean() for head in (balanced, plain)]
    assert said[0] > said[1]


def test_quality_counts(sample):
    unsure = np.where(sample.y == "lost", 1e-3, 1.0)
    doubtful = LabelSample(
        sample.X, sample.y, sample.groups, unsure, sample.x_map, sample.y_map, sample.rows, sample.columns,
        sample.classes, None, sample.attrs, sample.crs, sample.shape,
    )  # fmt: skip
    shares = [
        fit_sample(s, "logistic", class_weight=None).probability_rows(sample.X)[:, 1].mean() for s in (sample, doubtful)
    ]
    assert shares[1] < 0.5 * shares[0]


def test_what_has_no_weights_takes_none(sample):
    from sklearn.neighbors import KNeighborsClassifier

    assert fit_sample(sample, KNeighborsClassifier()).name == "KNeighborsClassifier"
    with pytest.raises(SchemaError, match=r"KNeighborsClassifier takes no weights; leave out class_weight='balanced'"):
        fit_sample(sample, KNeighborsClassifier(), class_weight="balanced")


def test_bands_are_brought_to_one_scale_or_keep_their_sizes(sample):
    each, together = (fit_sample(sample, "logistic", standardise=s).scaling for s in ("each", "together"))
    np.testing.assert_allclose(each.apply(sample.X).std(axis=0), 1, rtol=1e-3)
    assert np.ptp(together.scale) == 0
    assert together.apply(sample.X).std() == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(together.apply(sample.X).mean(axis=0), 0, atol=1e-4)
    assert np.ptp(fit_sample(sample, "logistic").scaling.scale) > 0  # published TESSERA: each
    own = LabelSample(
        sample.X, sample.y, sample.groups, sample.weights, sample.x_map, sample.y_map, sample.rows, sample.columns,
        sample.classes, None, sample.attrs | {"model_official": "no"}, sample.crs, sample.shape,
    )  # fmt: skip
    assert np.ptp(fit_sample(own, "logistic").scaling.scale) == 0
    np.testing.assert_array_equal(fit_sample(sample, "knn", standardise=None).scaling.apply(sample.X), sample.X)


def test_a_class_of_the_label_set_without_pixels_is_not_learnt(emb, sample):
    more = LabelSample(
        sample.X, sample.y, sample.groups, sample.weights, sample.x_map, sample.y_map, sample.rows, sample.columns,
        {"water": "#0000ff", **sample.classes}, None, sample.attrs, sample.crs, sample.shape,
    )  # fmt: skip
    head = fit_sample(more, "logistic")
    assert head.classes == tuple(sample.classes)
    assert head.colours == tuple(sample.classes.values())
    np.testing.assert_array_equal(head.predict(emb).prediction, fit_sample(sample, "logistic").predict(emb).prediction)


def test_a_label_set_is_laid_on_the_map(emb, truth):
    labels = LabelSet.from_raster(truth, names={1: "still there", 2: "lost"})
    with pytest.warns(TesseraWarning, match="without data left out"):
        head = fit_head(emb, labels, "logistic")
    assert sum(head.n_labelled.values()) == int(emb.scales.notnull().sum())
    assert "lost" in repr(head)
    with pytest.raises(SchemaError, match=r"choose one of 2020, 2022"):
        fit_head(tutorial.embeddings().sel(time=[2020, 2022], y=emb.y, x=emb.x), labels)


# What can't be right --------------------------------------------------------------------------------------------------


def changed(sample: LabelSample, **attrs: object) -> LabelSample:
    from dataclasses import replace

    return replace(sample, **attrs)


def test_bad_labels_are_refused(sample, numbers):
    with pytest.raises(SchemaError, match=r"all labels are 'lost'; a head needs two classes or more"):
        fit_sample(sample.take(sample.y == "lost"))
    with pytest.raises(SchemaError, match=r"there are no labelled pixels"):
        fit_sample(sample.take(np.zeros(len(sample), bool)))
    with pytest.raises(SchemaError, match=r"unknown classes \['shadow'\] in the sample; its classes are"):
        fit_sample(changed(sample, y=np.where(np.arange(len(sample)) == 3, "shadow", sample.y)))
    bad = numbers.y.copy()
    bad[[1, 5]] = np.nan, np.inf
    with pytest.raises(SchemaError, match=r"2 of 120 targets are NaN or infinite; remove them"):
        fit_sample(changed(numbers, y=bad), "ridge")
    with pytest.raises(SchemaError, match=r"all 120 targets are 4; a head needs values that differ"):
        fit_sample(changed(numbers, y=np.full(120, 4.0)), "ridge")


def test_bad_models_are_refused(sample, numbers):
    with pytest.raises(
        SchemaError, match=r"model='logistics' is unknown for classes; choose one of \['logistic', 'knn'"
    ):
        fit_sample(sample, "logistics")
    with pytest.raises(
        SchemaError, match=r"model='ridge' is unknown for classes \('ridge' is for numbers: .* target=True\)"
    ):
        fit_sample(sample, "ridge")
    with pytest.raises(
        SchemaError,
        match=r"model='logistic' is unknown for numbers \('logistic' is for classes: .* whole numbers or text\)",
    ):
        fit_sample(numbers, "logistic")
    with pytest.raises(SchemaError, match=r"LinearRegression is no classifier, and the labels are classes"):
        fit_sample(sample, LinearRegression())
    with pytest.raises(SchemaError, match=r"KMeans is no classifier"):
        fit_sample(sample, KMeans())
    with pytest.raises(SchemaError, match=r"is no model; choose one of"):
        fit_sample(sample, LogisticRegression)
    with pytest.raises(SchemaError, match=r"knn has no option k; its options are approximate, n_neighbors, weights"):
        fit_sample(sample, "knn", k=3)
    with pytest.raises(SchemaError, match=r"standardise='all' is unknown; choose 'auto', 'each', 'together' or None"):
        fit_sample(sample, standardise="all")
    with pytest.raises(SchemaError, match=r"class_weight='even' is unknown; choose 'auto', 'balanced' or None"):
        fit_sample(sample, class_weight="even")
    with pytest.raises(SchemaError, match=r"labels must be a LabelSet or a LabelSample, not list"):
        fit_head(None, [1, 2])


def test_a_head_is_not_used_on_other_embeddings(emb, sample):
    head = fit_sample(sample)
    with pytest.raises(VersionMismatchError, match=r"differ in model \(v1\.1-dclimate, v1\.1-mpc\)"):
        head.predict(emb.assign_attrs(model="v1.1-mpc"))
    with pytest.raises(VersionMismatchError, match=r"differ in model_family"):
        head.predict(emb.assign_attrs(model_family="v2"))
    with pytest.raises(
        VersionMismatchError, match=r"takes embeddings of 128 values, these have 64; embed with dims=128"
    ):
        head.predict(emb.isel(band=slice(64)))
    with pytest.raises(VersionMismatchError):
        fit_head(emb.assign_attrs(model="v1.1-mpc"), sample)
    with pytest.raises(SchemaError, match="this function needs embeddings"):
        head.predict(tutorial.labels())
    with pytest.raises(SchemaError, match=r"interval=90 must lie between 0 and 1"):
        head.predict(emb, interval=90)
    with pytest.raises(SchemaError, match=r"embeddings must be \(n, 128\), not \(3, 64\)"):
        head.predict_rows(np.zeros((3, 64)))
    with pytest.raises(SchemaError, match=r"LinearSVC gives no probabilities"):
        fit_sample(sample, LinearSVC()).probability_rows(sample.X)


def test_the_map_follows_the_estimator_where_that_is_not_the_most_probable(emb, sample, hole):
    from sklearn.model_selection import FixedThresholdClassifier

    wary = FixedThresholdClassifier(LogisticRegression(), threshold=0.99, pos_label=1, response_method="predict_proba")
    head = fit_sample(sample, wary)
    found = head.predict(emb)
    said = head.predict_rows(pixels(emb)[~hole])
    np.testing.assert_array_equal(np.array(head.classes)[found.prediction.values[~hole] - 1], said)
    shares = found.probability.values[:, ~hole]
    assert (shares.argmax(axis=0) + 1 != found.prediction.values[~hole]).any()
    chosen = np.take_along_axis(shares, found.prediction.values[~hole][None].astype(int) - 1, axis=0)[0]
    np.testing.assert_array_equal(found.confidence.values[~hole], chosen)


def test_a_ridge_is_as_strong_as_other_polygons_ask(numbers):
    """Pixels of a polygon that are copies of each other would ask for none."""
    one = numbers.take(np.repeat(np.arange(40), 5))
    rng = np.random.default_rng(0)
    noisy = changed(
        one, X=one.X + 0.01 * rng.normal(size=one.X.shape).astype(np.float32), y=rng.normal(size=40).repeat(5)
    )
    lonely = changed(noisy, groups=np.arange(len(noisy)))
    strong, weak = (fit_sample(s, "ridge").estimator.alpha_ for s in (noisy, lonely))
    assert strong > 30 * weak


def test_a_sample_goes_with_its_own_map_and_year(emb, sample):
    assert sample.time == "2022"
    with pytest.raises(SchemaError, match=r"sampled from embeddings of 2022, these are of 2019; pass the LabelSet"):
        fit_head(tutorial.embeddings().sel(time=2019, y=emb.y, x=emb.x), sample)
    with pytest.raises(GridError, match=r"sampled on a map of \(32, 40\) pixels, this has \(64, 64\)"):
        fit_head(tutorial.embeddings().sel(time=2022), sample)
    with pytest.raises(SchemaError, match=r"'head.txr' is no head; fit one with .* load_head"):
        emb.tessera.predict("head.txr")


def test_scores_are_kept(sample):
    head = fit_sample(sample).with_scores({"macro_f1": 0.8, "confusion": np.eye(2), "name": "x"})
    assert head.scores == {"macro_f1": 0.8}
    assert "macro_f1 0.8" in repr(head)


# Heads that see the neighbourhood -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet(emb, sample):
    return fit_head(emb, sample, "unet", features=(8, 16), bottleneck=32, max_epochs=6)


def test_a_unet_draws_a_map_without_seams(emb, unet, hole, monkeypatch):
    from tessera_xr.learning import images

    assert unet.is_spatial
    found = unet.predict(emb)
    assert (found.prediction.values[hole] == 0).all()
    np.testing.assert_array_equal(
        found.prediction.values[~hole], found.probability.fillna(0).argmax("class").values[~hole] + 1
    )
    assert np.isnan(found.confidence.values[hole]).all()
    monkeypatch.setattr(images, "STRIP", 16)
    strips = unet.predict(emb)
    lazy = unet.predict(emb.chunk(y=9, x=17))
    float_map = unet.predict(dequantize(emb))
    for other in (strips, lazy, float_map):
        np.testing.assert_allclose(other.probability, found.probability, atol=2e-5)
    assert lazy.prediction.chunks is not None
    wide = tutorial.embeddings().sel(time=2022)  # chunks that hold the margin, but begin between the network's steps
    odd = unet.predict(wide.chunk(y=(30, 34), x=(33, 31)))
    np.testing.assert_allclose(odd.probability, unet.predict(wide).probability, atol=2e-5)
    years = unet.predict(tutorial.embeddings().sel(time=[2020, 2022], y=emb.y, x=emb.x))
    assert years.probability.dims == ("time", "class", "y", "x")


def test_a_unet_needs_its_map(emb, sample, unet):
    with pytest.raises(SchemaError, match=r"a UNet learns from the map around the labels; pass the embeddings too"):
        fit_head(None, sample, "unet")
    with pytest.raises(SchemaError, match=r"call fit_head\(emb, labels, 'unet'\)"):
        fit_sample(sample, "unet")
    with pytest.raises(GridError, match=r"sampled on a map of \(32, 40\) pixels, this has \(20, 40\)"):
        fit_head(emb.isel(y=slice(20)), sample, "unet")
    with pytest.raises(SchemaError, match=r"needs a map: use head\.predict\(emb\)"):
        unet.predict_rows(sample.X)
