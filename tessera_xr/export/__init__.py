"""Files that others open: GeoTIFF, Zarr, GeoJSON, GeoParquet."""

from tessera_xr.export.geotiff import to_geotiff
from tessera_xr.export.points import to_geojson, to_geoparquet
from tessera_xr.export.stores import to_zarr

__all__ = ["to_geojson", "to_geoparquet", "to_geotiff", "to_zarr"]
