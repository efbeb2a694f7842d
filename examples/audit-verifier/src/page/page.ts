/** The page: takes files and keys from the form, verifies in this tab, and shows the report. Uses no network and stores nothing. */
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import { hasCode } from '@keyguard/core/errors';
import { ATTACKS, type Finding } from '../attacks.ts';
import { linesOf, UnreadableExport } from '../export.ts';
import { readMacKeys, readVerifierKeys, UnreadableInput } from '../keys.ts';
import { detailTexts, verdictText, whereText } from '../report.ts';
import { verifyExport, type Report } from '../verify.ts';

const byId = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const form = byId<HTMLFormElement>('form');
const button = byId<HTMLButtonElement>('verify');
const result = byId('result');

// Text only: what an export says must never become markup.
function element(name: string, text: string, className = ''): HTMLElement {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function box(className: string, ...children: readonly HTMLElement[]): HTMLElement {
  const made = element('div', '', className);
  made.append(...children);
  return made;
}

function findingBox(found: Finding): HTMLElement {
  const where = whereText(found);
  const place = where === null ? [] : [element('p', `Where: ${where}`)];
  return box('finding', element('h3', ATTACKS[found.attack]), element('code', found.attack), ...place, element('p', `Why: ${found.because}`));
}

function show(report: Report): void {
  const list = document.createElement('ul');
  list.append(...detailTexts(report).map((text) => element('li', text)));
  result.replaceChildren(box(`verdict ${report.verdict}`, element('h2', verdictText(report)), list), ...report.findings.map(findingBox));
}

// Not every browser can iterate a stream yet.
async function* chunksOf(file: File): AsyncGenerator<Uint8Array> {
  const reader = file.stream().getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

async function verify(): Promise<Report> {
  const [file] = byId<HTMLInputElement>('export').files!;
  if (file === undefined) throw new UnreadableInput('Choose an export.');
  const checkpoints = await Promise.all([...byId<HTMLInputElement>('checkpoints').files!].map(async (note) => ({ name: note.name, note: await note.text() })));
  const verifierKeys = readVerifierKeys(byId<HTMLTextAreaElement>('key').value);
  const macKeys = await readMacKeys(byId<HTMLTextAreaElement>('mac-keys').value);
  return verifyExport({ lines: linesOf(chunksOf(file)), checkpoints, verifierKeys, macKeys, primitives: webCryptoPrimitives() });
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  button.disabled = true;
  result.replaceChildren(element('p', 'Verifying …'));
  verify()
    .then(show, (error: unknown) => {
      const isExpected = error instanceof UnreadableExport || error instanceof UnreadableInput || hasCode(error, 'invalid_option');
      const message = isExpected ? (error as Error).message : 'This browser could not do it. It needs Ed25519 in WebCrypto.';
      result.replaceChildren(box('verdict', element('h2', 'Nothing was verified.'), element('p', message)));
    })
    .finally(() => {
      button.disabled = false;
    });
});
