"""Ask a served model what is in pictures; needs nothing but Python.

mlflow models serve -m models:/MODEL_ID --env-manager local --port 5001
python ask_server.py http://127.0.0.1:5001 PICTURE [PICTURE ...]
"""

import base64
import json
import sys
import urllib.request
from pathlib import Path

url, *pictures = sys.argv[1:]
images = [[base64.b64encode(Path(picture).read_bytes()).decode()] for picture in pictures]
body = json.dumps({"dataframe_split": {"columns": ["image"], "data": images}}).encode()
request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as response:
    answers = json.load(response)["predictions"]
for picture, answer in zip(pictures, answers, strict=True):
    if answer.get("error"):
        print(f"{picture}: {answer['error']}")
        continue
    # Each answer also has the probability of every class under its name.
    print(f"{picture}: {answer['label']} ({answer['probability']:.1%})")
