"""What /openapi.json says of the body of POST /v1/videos.

It is the schema of `VideoRequest` (`proav/serve/orders/requests.py`), once as JSON and once as a form with a
file.
"""

from copy import deepcopy

from fastapi import FastAPI

from proav.serve.orders.requests import VideoRequest


def describe(app: FastAPI) -> None:
    """Adds the body to the schema of `app`: the route reads it by itself, so FastAPI does not know it."""
    generate = app.openapi

    def openapi() -> dict:
        if app.openapi_schema is None:
            schema = generate()
            request = VideoRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(request.pop("$defs", {}))
            form = deepcopy(request)
            form["properties"]["input_reference"] = {
                "type": "string",
                "format": "binary",
                "description": "A file with sound (a2v) or pictures (v2a), an image or a video (i2av), "
                "or a clip (continue, inpaint).",
            }
            schemas |= {"VideoRequest": request, "VideoForm": {**form, "title": "VideoForm"}}
            content = {
                "application/json": {"schema": {"$ref": "#/components/schemas/VideoRequest"}},
                "multipart/form-data": {"schema": {"$ref": "#/components/schemas/VideoForm"}},
            }
            schema["paths"]["/v1/videos"]["post"]["requestBody"] = {"required": True, "content": content}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi
