// Appended to a page by `tests/report.rs`: points at and clicks on the first mark of each picture and the first model,
// and sends what it saw as JSON to the page around it.
const copies = [];
Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => { copies.push(text); } } });
const wait = () => new Promise((done) => setTimeout(done, 20));
const shown = (element) => getComputedStyle(element).display !== "none" && element.getBoundingClientRect().height > 0;
const look = async (place) => {
  place.scrollIntoView({ block: "center" });
  const expected = place.querySelector("title")?.textContent ?? place.title;
  const box = place.getBoundingClientRect();
  const at = { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 };
  const target = document.elementFromPoint(at.clientX, at.clientY);
  target.dispatchEvent(new PointerEvent("pointerover", at));
  const frame = hover.getBoundingClientRect();
  const seen = {
    on_top: target.closest(".point, [data-copy]") !== null,
    expected, hover: hover.textContent, visible: shown(hover),
    inside: frame.left >= 0 && frame.right <= innerWidth,
    subnet: target.closest("[data-copy]")?.dataset.copy ?? null,
  };
  copies.length = 0;
  target.dispatchEvent(new MouseEvent("click", at));
  await wait();
  seen.copied = copies[0] ?? null;
  seen.note = copied.textContent;
  document.body.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, clientX: 1, clientY: 1 }));
  seen.left = hover.textContent;
  return seen;
};
(async () => {
  const places = [...document.querySelectorAll("figure")].map((figure) => figure.querySelector(".point")).filter(Boolean);
  places.push(document.querySelector("th[data-copy]"));
  const seen = [];
  for (const place of places) seen.push(await look(place));
  // What reaches beyond the page's width, but for what scrolls by itself.
  const wide = [...document.querySelectorAll("body *")].filter(
    (element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".wide"));
  parent.postMessage(JSON.stringify({
    width: innerWidth, scroll_width: document.documentElement.scrollWidth, wide: wide.map((e) => e.outerHTML.slice(0, 80)), seen,
  }), "*");
})();
