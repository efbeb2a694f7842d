import { casesOf } from '../../src/cases.ts';

const it = casesOf('Seam', 'one');
it.contract('holds', () => {});
it.races('hold', () => {});
