"""Copy a dataset and keep the annotations of one class only, so that objects are rare.

    retinanet data convert BCCD BCCD-coco --to coco --images link
    python experiments/rare_class.py BCCD-coco Platelets BCCD-Platelets

The dataset must have COCO form, as ``retinanet data convert`` writes it. Images are linked, not copied.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from retinanet.files import write_json


def only(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Remove all other classes from COCO annotations."""
    kept = [category for category in content["categories"] if category["name"] == name]
    if not kept:
        raise SystemExit(f"no class {name!r}; there are {', '.join(c['name'] for c in content['categories'])}")
    annotations = [each for each in content["annotations"] if each["category_id"] == kept[0]["id"]]
    return {**content, "categories": kept, "annotations": annotations}


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("name", help="the class to keep")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for file in sorted(arguments.data.rglob("*.json")):
        target = arguments.out / file.relative_to(arguments.data)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = only(json.loads(file.read_text(encoding="utf-8")), arguments.name)
        write_json(target, content)
        print(f"{target}: {len(content['images'])} images, {len(content['annotations'])} objects")
    for folder in (path for path in sorted(arguments.data.iterdir()) if path.is_dir()):
        link = arguments.out / folder.name
        if not link.exists():
            link.symlink_to(folder.resolve(), target_is_directory=True)


if __name__ == "__main__":
    main()
