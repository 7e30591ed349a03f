// Hover: the text of a mark or of a model's name beside the pointer. The titles serve where no script runs.
const hover = document.getElementById("hover"), copied = document.getElementById("copied");
const textOf = (place) => {
  const title = place.querySelector("title");
  if (title) { place.dataset.text = title.textContent; title.remove(); }
  if (place.title) { place.dataset.text = place.title; place.removeAttribute("title"); }
  return place.dataset.text;
};
document.addEventListener("pointerover", (event) => {
  const place = event.target.closest(".point, [data-copy]");
  hover.textContent = place ? textOf(place) : "";
  if (!place) return;
  const left = Math.max(0, Math.min(event.clientX + 12, innerWidth - hover.offsetWidth - 8));
  const below = event.clientY + 16, above = event.clientY - hover.offsetHeight - 12;
  hover.style.left = left + "px";
  hover.style.top = (below + hover.offsetHeight > innerHeight && above > 0 ? above : below) + "px";
});
// Click: copies the subnet.
document.addEventListener("click", (event) => {
  const place = event.target.closest("[data-copy]");
  if (!place) return;
  const text = place.dataset.copy;
  const show = (words) => { copied.textContent = words; setTimeout(() => { copied.textContent = ""; }, 3000); };
  if (!navigator.clipboard) return show(text);
  navigator.clipboard.writeText(text).then(() => show("copied: " + text), () => show(text));
});
