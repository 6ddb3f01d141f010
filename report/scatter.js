// Colours the points by what was chosen, and shows the image under the pointer and its neighbours.
function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return made;
}

function address() {  // short, as every small picture names it
  if (!said._atlas) {
    const [head, body] = atlas.split(",");
    const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
    said._atlas = URL.createObjectURL(new Blob([bytes], {type: head.slice(5).split(";")[0]}));
  }
  return said._atlas;
}

function small(row, scale) {
  const cut = element("div");
  cut.className = "cut";
  const side = tile * scale;
  const rows = Math.ceil(names.length / columns);
  Object.assign(cut.style, {
    width: `${side}px`, height: `${side}px`,
    backgroundImage: `url(${address()})`,
    backgroundSize: `${columns * side}px ${rows * side}px`,
    backgroundPosition: `${-(row % columns) * side}px ${-Math.floor(row / columns) * side}px`,
  });
  return cut;
}

function about(row) {
  const label = labels[row] ? `${labels[row]}` : "no label";
  return labels[row] === predicted[row] ? label : `${label}, predicted ${predicted[row]}`;
}

function show(row) {
  const box = element("div");
  box.append(element("b", names[row]), element("div", about(row)));
  if (atlas) box.append(small(row, 4));
  box.append(element("div", "nearest in the features:"));
  const strip = element("div");
  strip.className = "strip";
  const x = [], y = [];
  for (let place = 0; place < k; place++) {
    const other = nearest[row * k + place];
    if (other < 0) continue;
    x.push(source.data.x[other]);
    y.push(source.data.y[other]);
    const one = element("div");
    if (atlas) one.append(small(other, 2));
    one.append(element("div", about(other)));
    one.title = names[other];
    strip.append(one);
  }
  near.data = {x, y};
  box.append(strip);
  said.text = box.outerHTML;
}

const hovered = cb_data?.index?.indices;
if (hovered !== undefined) {
  if (hovered.length && said._row !== hovered[0]) {
    said._row = hovered[0];
    show(hovered[0]);
  }
} else {
  const chosen = colourings[by.value];
  source.data = {...maps[which.value], colour: chosen.colours, marker: chosen.markers};
  near.data = {x: [], y: []};
  const list = element("div");
  for (const [name, colour, marker] of chosen.legend) {
    const patch = element("span", marker);
    patch.style.color = colour;
    const entry = element("span");
    entry.style.whiteSpace = "nowrap";
    entry.append(patch, ` ${name}`);
    list.append(entry, " \u2002");
  }
  legend.text = list.outerHTML;
  if (!said.text) {
    const hint = element("div", "Hover over a point to see its image and neighbours; scroll to zoom, and choose a tool to move.");
    said.text = hint.outerHTML;
  }
}
