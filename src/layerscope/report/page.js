(()=>{
// Pointer and arrow keys read one layer of a picture out of the table that follows it; names light up their lines.
const box=document.currentScript?.closest(".ls")??[...document.querySelectorAll(".ls")].pop();
if(!box)return;
const tip=document.createElement("div");
tip.className="ls-tip";tip.setAttribute("role","status");box.append(tip);
const all=(s,e=box)=>[...e.querySelectorAll(s)];
const light=key=>{all(".ls-hot").forEach(e=>e.classList.remove("ls-hot"));
  box.classList.toggle("ls-dim",key!=null);
  if(key!=null)all(`[data-c="${key}"]`).forEach(e=>e.classList.add("ls-hot"))};
const hide=()=>{tip.classList.remove("ls-on");all(".ls-x.ls-on").forEach(e=>e.classList.remove("ls-on"))};
const node=(name,text)=>{const e=document.createElement(name);e.textContent=text;return e};
// The table stands in the chart itself, or in the figure's second group of panels, at the same place as the picture.
const tableOf=svg=>{const panel=svg.closest(".ls-chart,.ls-panel"),
  home=panel?.matches(".ls-chart")?panel:panel?.closest(".ls-fig").querySelector(".ls-tables")?.children[[...panel.parentNode.children].indexOf(panel)];
  return home?.querySelector(".ls-numbers")};
function show(svg,i,x,y,key){
  const n=+svg.dataset.n,at=svg.dataset.at?.split(" ").map(Number),table=tableOf(svg);
  if(!table)return;
  svg.dataset.i=i;
  const place=100*(at?at[i]:(i+.5)/n)+"%";
  all(".ls-plot[data-n]").forEach(p=>{const on=p.dataset.n===svg.dataset.n,l=p.querySelector(".ls-x");
    l.classList.toggle("ls-on",on);if(on){l.setAttribute("x1",place);l.setAttribute("x2",place)}});
  const row=table.tBodies[0].rows[i],names=[...table.tHead.rows[0].cells].slice(1),rows=document.createElement("table");
  [...row.cells].slice(1).forEach((c,k)=>{const r=rows.insertRow();r.append(node("td",names[k].textContent),node("td",c.textContent));
    if(String(k)===key)r.className="ls-hot"});
  tip.replaceChildren(node("b",row.cells[0].textContent));
  // Remarks on a place stand in the figure's first table only.
  const about=row.cells[0].title||svg.closest(".ls-fig")?.querySelector(".ls-numbers")?.tBodies[0].rows[i]?.cells[0].title;
  if(about)tip.append(node("small",about));
  tip.append(rows);tip.classList.add("ls-on");
  const w=tip.offsetWidth,h=tip.offsetHeight;
  tip.style.left=(x+18+w>innerWidth?Math.max(4,x-18-w):x+18)+"px";
  tip.style.top=Math.max(4,Math.min(y-h/2,innerHeight-h-4))+"px"}
all(".ls-plot[data-n]").forEach(svg=>{
  const n=+svg.dataset.n,at=svg.dataset.at?.split(" ").map(Number);
  svg.addEventListener("pointermove",e=>{
    const r=svg.getBoundingClientRect(),f=(e.clientX-r.left)/r.width;
    if(f<0||f>1)return hide();
    const i=at?at.reduce((b,a,k)=>Math.abs(a-f)<Math.abs(at[b]-f)?k:b,0):Math.min(n-1,Math.floor(f*n));
    show(svg,i,e.clientX,e.clientY,e.target.closest("[data-c]")?.dataset.c)});
  svg.addEventListener("pointerleave",hide);svg.addEventListener("blur",hide);
  svg.addEventListener("keydown",e=>{
    const step={ArrowLeft:-1,ArrowRight:1}[e.key];if(!step)return;e.preventDefault();
    const i=Math.max(0,Math.min(n-1,(+(svg.dataset.i??-1))+step)),r=svg.getBoundingClientRect();
    show(svg,i,r.left+r.width*(at?at[i]:(i+.5)/n),r.top+40)})});
// A click on a name or line keeps it lit while the reader scrolls; a second click, or Escape, lets go.
let pinned;
const keyOf=e=>e.target.closest("[data-c]")?.dataset.c;
box.addEventListener("pointerover",e=>light(keyOf(e)??pinned));
box.addEventListener("pointerleave",()=>light(pinned));
box.addEventListener("click",e=>{if(e.target.closest(".ls-who,.ls-fig")){const k=keyOf(e);if(k!=null){pinned=k===pinned?undefined:k;light(pinned)}}});
box.addEventListener("keydown",e=>{if(e.key==="Escape"){pinned=undefined;light();hide()}});
})();
